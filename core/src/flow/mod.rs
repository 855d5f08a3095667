//! One small machine per protocol flow, and the language in which they talk to the world.
mod api;
mod config;

pub use api::{Command, CommandError, CommandId, Connection, Content, Event, Message, Notice, Reply, SendRequest};
pub use config::{Config, Endpoint, Limits, PreKeyPolicy, Profile, ServiceConfig, Timing};
