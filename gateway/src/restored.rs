//! `baton restored`: says that the database is not what it was, so that every account makes up for what may be lost.

use crate::{
    cli::Common,
    setup::{Failure, store_failed},
    store::{self, Create, Place},
};
use baton_core::state::Store as _;
use serde_json::json;

pub(crate) async fn run(common: &Common) -> Result<(), Failure> {
    let place = Place::of(common)?;
    let store = store::open(common, Create::No).await?;
    let before = store.history().await.map_err(store_failed)?;
    let now = store.renew_history(before).await.map_err(store_failed)?;
    if common.json {
        println!(
            "{}",
            json!({ "event": "restored", "timeline": now.timeline, "generation": now.generation })
        );
    } else {
        println!(
            "{place} is of generation {} now: every account skips what may have been used before it goes on.",
            now.generation
        );
    }
    Ok(())
}
