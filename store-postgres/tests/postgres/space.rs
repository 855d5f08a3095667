//! A database without space. Needs a file system of a few megabytes, so the right to mount one; without it the test says
//! that it does nothing.

use crate::{
    cluster::{Cluster, RUNTIME, options, skipped},
    rows::{Owner, record},
};
use baton_core::state::{Key, Outcome, Row, Store, StoreError, conformance::block_on};
use baton_store_postgres::PgStore;
use std::{fs, path::PathBuf, process::Command};

/// A tmpfs, unmounted in the end.
struct Small(PathBuf);

impl Small {
    fn mount(cluster: &Cluster) -> Option<Self> {
        let path = cluster.directory().join("small");
        fs::create_dir(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"])
            .arg(&path)
            .output();
        mounted.ok().filter(|output| output.status.success())?;
        pg_cluster::run(Command::new("chown").arg("postgres").arg(&path));
        Some(Self(path))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Rows in a tablespace that is full: what does not fit is refused, nothing of it is there, and everything works again
/// when there is space.
#[test]
fn a_full_database_refuses_and_recovers() {
    let Some(cluster) = Cluster::start(&[]) else {
        return;
    };
    let Some(small) = Small::mount(&cluster) else {
        skipped("the right to mount a small file system");
        return;
    };
    let create = format!("CREATE TABLESPACE small LOCATION '{}'", small.0.display());
    cluster.sql("postgres", &create);
    cluster.sql("postgres", "CREATE DATABASE full_one TABLESPACE small");
    let ballast = small.0.join("ballast");
    let url = cluster.url("full_one");
    let store = RUNTIME.block_on(PgStore::connect(&url, options())).unwrap();
    let mut owner = Owner::create(&store, "acme", "main");
    owner.commit("before").unwrap();
    // What is left is less than one record needs.
    let free = Command::new("df")
        .args(["--output=avail", "-B1"])
        .arg(&small.0)
        .output()
        .unwrap();
    let free = String::from_utf8(free.stdout).unwrap();
    let free: usize = free.lines().last().unwrap().trim().parse().unwrap();
    fs::write(&ballast, vec![0; free - (256 << 10)]).unwrap();

    let mut batch = owner.batch("too much");
    let large: String = (0..200_000).map(|n| format!("{n:06}")).collect();
    batch
        .rows
        .insert(Key::Outbox("m".into()), Some(record(large)));
    for _ in 0..2 {
        let answer = block_on(store.commit(vec![batch.clone()]));
        assert!(
            matches!(&answer, Err(StoreError::Refused(why)) if why.contains("space")),
            "{answer:?}"
        );
    }
    assert_eq!(owner.event(1), Row::Present(record("before")));
    assert_eq!(owner.event(2), Row::Absent);
    fs::remove_file(&ballast).unwrap();
    let answer = block_on(store.commit(vec![batch]));
    assert_eq!(answer, Ok(vec![Outcome::Committed]));
    assert_eq!(owner.event(2), Row::Present(record("too much")));
    drop(cluster);
}
