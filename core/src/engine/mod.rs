//! One account: routes inputs to flows, collects effects, holds the durability gate.
