//! `baton demo`: the stage with one plan, told as a timeline.

use crate::{
    cli::Common,
    report,
    setup::Failure,
    signals::Signals,
    stage::{self, Beat, Disaster, Plan, Size, Split, Staging, Verdict},
    store::Place,
};
use clap::Args;
use serde_json::json;
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// What happens to a host.
    #[arg(long, value_enum, default_value = "kill")]
    disaster: Disaster,
    /// How many hosts share the accounts.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
    hosts: u8,
    /// What happens is drawn from this number, decimal or 0x hexadecimal.
    #[arg(long, default_value = "0x5EED", value_parser = seed)]
    seed: u64,
    /// How many accounts write to each other.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(2..=1000))]
    accounts: u16,
    /// How long the traffic lasts; there are 60 messages a second. Default: 8, or 14 where a lease is waited for.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=7200))]
    seconds: Option<u16>,
    /// Leave database and logs where they are, and say where.
    #[arg(long)]
    keep: bool,
    /// How often the disaster strikes.
    #[arg(long, hide = true, default_value_t = 1)]
    times: u16,
    /// Processes that were killed come back under their names.
    #[arg(long, hide = true)]
    revive: bool,
    /// Hosts learn of the end of others from leases alone.
    #[arg(long, hide = true)]
    no_presence: bool,
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
    let seconds = flags.seconds.unwrap_or(match flags.disaster {
        Disaster::Pause | Disaster::Partition | Disaster::Naive => 14,
        _ => 8,
    });
    let size = Size {
        accounts: flags.accounts.into(),
        messages: usize::from(seconds) * RATE,
        over: Duration::from_secs(seconds.into()),
        nodes: flags.hosts.into(),
        kills: flags.times.into(),
    };
    let needs_another = !matches!(
        flags.disaster,
        Disaster::Kill | Disaster::Rolling | Disaster::StoreStall
    );
    if flags.hosts < 2 && needs_another {
        return Err(Failure::setup(
            "with one host nobody is there to take over; give --hosts 2",
        ));
    }
    let plan = Plan::draw(flags.seed, size);
    let program = std::env::current_exe()
        .map_err(|error| Failure::setup(format!("this program cannot find itself: {error}")))?;
    let scratch = tempfile::Builder::new()
        .prefix("baton-demo-")
        .tempdir()
        .map_err(|error| Failure::setup(format!("no temporary directory: {error}")))?;
    let store = match Place::of(common)? {
        Place::Postgres(url) => Some(url),
        // Never the file of somebody's accounts.
        Place::Sqlite(_) => None,
    };
    let staging = Staging {
        store,
        disaster: flags.disaster,
        presence: !flags.no_presence,
        revive: flags.revive,
        verbose: common.verbose,
        ..Staging::new(program, scratch.path().to_owned())
    };
    let json = common.json;
    let mut signals = Signals::new()?;
    let mut told = |beat| tell(json, &beat);
    // Its processes end with the play; with this process they would not.
    let verdict = tokio::select! { biased;
        () = signals.next() => return Err(Failure::failed("interrupted")),
        verdict = stage::play(&plan, &staging, &mut told) => verdict,
    };

    let clean = matches!(&verdict, Ok(verdict) if verdict.is_clean());
    let naive = flags.disaster == Disaster::Naive;
    if flags.keep || !(clean || naive && verdict.is_ok()) {
        let kept = scratch.keep();
        eprintln!("database and logs: {}", kept.display());
    }
    let verdict = verdict?;
    conclude(json, &flags, &plan, &verdict);
    match (naive, clean) {
        (false, true) => Ok(()),
        (false, false) => Err(Failure::failed(
            "an invariant is broken; the verdict above says which",
        )),
        (true, false) => Err(Failure::failed(
            "expected failure: this is what happens without fencing, which only this demonstration can switch off",
        )),
        (true, true) => Err(Failure::failed(
            "without fencing something should have been damaged, and nothing was: the demonstration shows nothing",
        )),
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
        let scissors = if beat.is_blow() { "✂ " } else { "" };
        report::line(format_args!(
            "{:6.2}  {:<9} {text}",
            at.as_secs_f64(),
            format!("{scissors}{who}")
        ))
    };
}

fn conclude(json: bool, flags: &Flags, plan: &Plan, verdict: &Verdict) {
    let seed = flags.seed;
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
        if flags.disaster == Disaster::Naive {
            object["expected"] = "failure".into();
        }
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
    if verdict.evicted + verdict.refused > 0 {
        lines.push(format!(
            "commits refused to a host that came too late: {}   its connections closed by the service: {}",
            verdict.refused, verdict.evicted
        ));
    }
    lines.extend(takeover_lines(verdict));
    lines.extend(
        verdict
            .faults
            .iter()
            .take(20)
            .map(|fault| format!("broken: {fault}")),
    );
    if flags.disaster == Disaster::Naive {
        lines.push(
            "without fencing: two owners at once, and this is the damage (expected)".to_owned(),
        );
    } else if verdict.is_clean() {
        lines.push(format!("all is well (seed {seed:#x})"));
    }
    let mut title = "verdict";
    for line in lines {
        let _ = report::line(format_args!("        {title:<9} {line}"));
        title = "";
    }
    if verdict.is_clean() && flags.disaster != Disaster::Naive {
        let _ = report::line(
            "\nnext: baton link --account main      link an account of yours by QR code\n      \
             baton tail main                  its messages, as they come\n      \
             baton send main PHONE TEXT       write to somebody",
        );
    }
}

/// Up to so many accounts have a line each.
const EACH: usize = 10;

/// The takeover, by account and step; and how long the accounts had no connection.
fn takeover_lines(verdict: &Verdict) -> Vec<String> {
    let splits = &verdict.splits;
    if splits.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![format!(
        "takeover      {:>8} {:>8} {:>8} {:>8} {:>9}",
        "noticed", "claimed", "online", "total", "message"
    )];
    let line = |name: String, s: &[f64], message: Option<f64>| {
        let message = message.map_or_else(|| "-".to_owned(), |m| format!("+{m:.2} s"));
        let [gone, claim, connect, total] = [0, 1, 2, 3].map(|n| s.get(n).copied().unwrap_or(0.0));
        format!(
            "  {name:<11} {gone:>6.2} s {claim:>6.2} s {connect:>6.2} s {total:>6.2} s {message:>9}"
        )
    };
    if splits.len() <= EACH {
        lines.extend(splits.iter().map(|s| {
            let name = format!("account-{}", s.account + 1);
            line(name, &[s.gone, s.claim, s.connect, s.total], s.message)
        }));
    }
    let part = |part: fn(&Split) -> f64, at: usize| {
        let mut parts: Vec<f64> = splits.iter().map(part).collect();
        parts.sort_by(f64::total_cmp);
        let place = (parts.len() - 1) * at / 100;
        parts.get(place).copied().unwrap_or(0.0)
    };
    let mut messages: Vec<f64> = splits.iter().filter_map(|s| s.message).collect();
    messages.sort_by(f64::total_cmp);
    for (name, at) in [("median", 50), ("longest", 100)] {
        let parts = [
            part(|s| s.gone, at),
            part(|s| s.claim, at),
            part(|s| s.connect, at),
            part(|s| s.total, at),
        ];
        let message = messages.len().checked_sub(1).map(|last| last * at / 100);
        let message = message.and_then(|at| messages.get(at).copied());
        lines.push(line(name.to_owned(), &parts, message));
    }
    let mut silences = verdict.silences.clone();
    silences.sort_unstable();
    // A host that is frozen or cut off keeps its connection; then the books do not tell.
    if verdict.evicted == 0
        && let (Some(median), Some(longest)) = (silences.get(silences.len() / 2), silences.last())
    {
        lines.push(format!(
            "without a connection (the service's books): median {:.3} s, longest {:.3} s, {} accounts",
            median.as_secs_f64(),
            longest.as_secs_f64(),
            silences.len()
        ));
    }
    lines
}
