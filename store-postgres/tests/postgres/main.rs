//! The store on a real server: the suite that every store runs, and what only a server can do to a store.

mod cluster;
mod failover;
mod faults;
mod plans;
mod pooler;
mod presence;
mod races;
mod rows;
mod sealed;
mod space;
mod strangers;
mod versions;
mod walls;

use cluster::Db;

baton_core::store_conformance!(match Db::new() {
    Some(db) => db,
    None => return,
});
