//! `baton demo`: the stage with one plan, told as a timeline.

use crate::{
    cli::Common,
    report,
    setup::Failure,
    stage::{self, Beat, Plan, Size, Staging, Verdict},
};
use clap::Args;
use serde_json::json;
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// What happens is drawn from this number, decimal or 0x hexadecimal.
    #[arg(long, default_value = "0x5EED", value_parser = seed)]
    seed: u64,
    /// How many accounts write to each other.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(2..=200))]
    accounts: u16,
    /// How long the traffic lasts; there are 60 messages a second.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// Leave database and logs where they are, and say where.
    #[arg(long)]
    keep: bool,
}

/// Messages per second of traffic.
const RATE: usize = 60;

fn seed(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
}

pub(crate) async fn run(common: &Common, flags: Flags) -> Result<(), Failure> {
    let seconds = Duration::from_secs(flags.seconds.into());
    let size = Size {
        accounts: flags.accounts.into(),
        messages: usize::from(flags.seconds) * RATE,
        over: seconds,
        nodes: 2,
        kills: 1,
    };
    let plan = Plan::draw(flags.seed, size);
    let program = std::env::current_exe()
        .map_err(|error| Failure::setup(format!("this program cannot find itself: {error}")))?;
    let scratch = tempfile::Builder::new()
        .prefix("baton-demo-")
        .tempdir()
        .map_err(|error| Failure::setup(format!("no temporary directory: {error}")))?;
    let staging = Staging {
        program,
        directory: scratch.path().to_owned(),
        pre_keys: 100,
        verbose: common.verbose,
    };
    let json = common.json;
    let verdict = stage::play(&plan, &staging, &mut |beat| tell(json, &beat)).await;

    let clean = matches!(&verdict, Ok(verdict) if verdict.is_clean());
    if flags.keep || !clean {
        let kept = scratch.keep();
        eprintln!("database and logs: {}", kept.display());
    }
    let verdict = verdict?;
    conclude(json, flags.seed, &plan, &verdict);
    if clean {
        Ok(())
    } else {
        Err(Failure::failed(
            "an invariant is broken; the verdict above says which",
        ))
    }
}

fn tell(json: bool, beat: &Beat) {
    let Beat {
        at,
        who,
        what,
        text,
        data,
    } = beat;
    // If nobody reads, the status still says how it ended.
    let _ = if json {
        let mut object =
            json!({ "t": (at.as_secs_f64() * 1000.0).round() / 1000.0, "who": who, "event": what });
        for (name, value) in data.as_object().into_iter().flatten() {
            object[name] = value.clone();
        }
        report::line(object)
    } else {
        let scissors = if *what == "killed" { "✂ " } else { "" };
        report::line(format_args!(
            "{:6.2}  {:<9} {text}",
            at.as_secs_f64(),
            format!("{scissors}{who}")
        ))
    };
}

fn conclude(json: bool, seed: u64, plan: &Plan, verdict: &Verdict) {
    if json {
        for message in &plan.messages {
            let (from, to) = (message.from + 1, message.to + 1);
            let _ = report::line(
                json!({ "event": "message", "id": message.id, "from": format!("account-{from}"),
                                         "to": format!("account-{to}") }),
            );
        }
        let mut object = serde_json::to_value(verdict).unwrap_or_default();
        object["event"] = "verdict".into();
        object["seed"] = seed.into();
        object["ok"] = verdict.is_clean().into();
        let _ = report::line(object);
        return;
    }
    let Verdict {
        sent,
        received,
        lost,
        duplicated,
        reordered,
        keys_used_twice,
        two_connections,
        ..
    } = verdict;
    let mut lines = vec![
        format!(
            "sent {sent}  received {received}  lost {lost}  duplicated {duplicated}  reordered {reordered}"
        ),
        format!(
            "ratchet keys used twice {keys_used_twice}   two connections at once {two_connections}"
        ),
        format!(
            "unfinished work in the store {}   events shown again {}   messages sent again {}",
            verdict.left_in_store, verdict.shown_again, verdict.resent
        ),
    ];
    if let Some(longest) = verdict.takeovers.iter().max() {
        lines.push(format!("takeover {:.2} s", longest.as_secs_f64()));
    }
    lines.extend(
        verdict
            .faults
            .iter()
            .take(20)
            .map(|fault| format!("broken: {fault}")),
    );
    if verdict.is_clean() {
        lines.push(format!("all is well (seed {seed:#x})"));
    }
    let mut title = "verdict";
    for line in lines {
        let _ = report::line(format_args!("        {title:<9} {line}"));
        title = "";
    }
    if verdict.is_clean() {
        let _ = report::line(
            "\nnext: baton link --account main      link an account of yours by QR code\n      \
             baton tail main                  its messages, as they come\n      \
             baton send main PHONE TEXT       write to somebody",
        );
    }
}
