//! What hosts wrote down about their engines is done again, byte for byte.

use crate::rig::{Rig, memory, options};
use baton_core::{
    crypto::SecretKey,
    engine::Output,
    journal::{Seen, replay},
};
use baton_tokio::{FleetOptions, Journals};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn journals_of_a_takeover_are_done_again() {
    let directory = tempfile::tempdir().unwrap();
    let master = SecretKey::from_bytes(std::array::from_fn(|n| u8::try_from(n).unwrap()));
    let journals = Journals::new(directory.path(), master.clone(), []).unwrap();
    let with = |name| FleetOptions {
        journals: Some(journals.clone()),
        ..options(name)
    };
    let rig = Rig::new(memory(), 4).await;
    let a = rig.start_with(with("a"), "a");
    let b = rig.start_with(with("b"), "b");
    rig.all_live(&[&a, &b]).await;
    let mut sent = rig.write_to_all("before");
    a.kill();
    sent.extend(rig.write_to_all("while nobody owned some"));
    rig.all_live(&[&b]).await;
    sent.extend(rig.write_to_all("after"));
    rig.shown(&sent).await;
    b.handle.shutdown();
    assert!(b.ended().await.left);

    let (mut files, mut events, mut commits) = (0, 0, 0);
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let path = entry.unwrap().path();
        let file = std::fs::read(&path).unwrap();
        let done = replay(&master, &file, |_, seen| {
            if let Seen::Output(output) = seen {
                events += usize::from(matches!(output, Output::Event(..)));
                commits += usize::from(matches!(output, Output::Commit(_)));
            }
        });
        let done = done.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(done.outputs > 0, "{}", path.display());
        files += 1;
    }
    assert!(files > rig.ids.len(), "somebody was taken over: {files}");
    // Three texts to each, and that it was linked.
    assert!(events >= 4 * rig.ids.len(), "{events}");
    assert!(commits > events / 2, "{commits}");
}
