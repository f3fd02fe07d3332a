//! Adding a resource: under a name of its own, in the place of another one if that is wanted, and with an answer that says what
//! state it came to.

use crate::connect::Globals;
use crate::exit::{Code, Failure, nearest};
use crate::observe;
use crate::output::note;
use crate::resource::{self, Kind};
use clap::Args;
use fluxcap_options::numbered;
use fluxcap_proto::v1::daemon_service_client::DaemonServiceClient;
use fluxcap_proto::v1::{GetDaemonRequest, State};
use fluxcap_service::parse_duration;
use std::time::{Duration, Instant};
use tonic::Code as Grpc;

/// Most resources that get one default name and a number each.
const NAMES: u32 = 1000;
/// How long a new one is given to begin in any case: most of what is wrong with it is known at once.
const SETTLE: Duration = Duration::from_secs(1);
/// Time between two looks at it.
const STEP: Duration = Duration::from_millis(20);

/// How something is added.
#[derive(Debug, Clone, Args)]
pub(crate) struct AddArgs {
    /// Name [default: made of what it does]
    #[arg(long)]
    pub(crate) name: Option<String>,

    /// Check only
    #[arg(long, short = 'n')]
    pub(crate) dry_run: bool,

    /// Should there be one of that name, change it to this; what is the same in both goes on without a gap
    #[arg(long)]
    replace: bool,

    /// Longest time to wait until it runs, 0 for none; one that then waits for what does not exist is a failure (exit code 3) [default: 2s]
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_value = "2s", default_missing_value = "2s",
          env = "FLUXCTL_WAIT", hide_env = true, hide_default_value = true, value_parser = parse_duration)]
    wait: Duration,
}

/// Makes one, under the default name unless another is given, waits for it to run, and gives it with its name.
pub(crate) async fn begin<K: Kind>(
    globals: &Globals,
    args: &AddArgs,
    default_name: &str,
    spec: K::Spec,
) -> Result<K, Failure> {
    let mut client = resource::connect::<K>(globals).await?;
    let mut one: K = match &args.name {
        Some(name) => make(&mut client, args, name, &spec).await?,
        None => make_unnamed(&mut client, args, default_name, &spec).await?,
    };
    let begun = Instant::now();
    if args.dry_run {
        return Ok(one);
    }
    loop {
        let patience = match one.state() {
            Some((State::Starting, _)) => args.wait.max(SETTLE),
            Some((State::Waiting, _)) => args.wait,
            _ => break,
        };
        if begun.elapsed() >= patience {
            break;
        }
        tokio::time::sleep(STEP).await;
        let name = one.name().to_owned();
        one = resource::known(&mut client, &name).await?;
    }
    Ok(one)
}

/// Shows one that was given the time to begin. Fails if it has given up already, or waits for what is not there.
pub(crate) async fn finish<K: Kind>(
    globals: &Globals,
    args: &AddArgs,
    one: K,
) -> Result<(), Failure> {
    let verdict = match args.dry_run {
        true => Ok(()),
        false => verdict(globals, args, &one).await,
    };
    resource::changed(globals, one)?;
    verdict
}

/// Makes one and shows what became of it.
pub(crate) async fn add<K: Kind>(
    globals: &Globals,
    args: &AddArgs,
    default_name: &str,
    spec: K::Spec,
) -> Result<(), Failure> {
    let one: K = begin(globals, args, default_name, spec).await?;
    finish(globals, args, one).await
}

/// The first of the names NAME, NAME-2, NAME-3... that is not taken by other work. The same work is not made twice.
async fn make_unnamed<K: Kind>(
    client: &mut K::Client,
    args: &AddArgs,
    default_name: &str,
    spec: &K::Spec,
) -> Result<K, Failure> {
    for number in 1..NAMES {
        let name = numbered(default_name, number);
        let there = match K::get(client, name.clone()).await {
            Ok(there) => there,
            Err(status) if status.code() == Grpc::NotFound => None,
            Err(status) => return Err(resource::failure::<K>(&name, &status)),
        };
        let other = there.as_ref().and_then(K::spec);
        if other.is_none_or(|other| K::same_work(other, spec)) {
            return make(client, args, &name, spec).await;
        }
    }
    let message = format!("there are {NAMES} {}s called {default_name}", K::NOUN);
    Err(Failure::new(Code::Refused, message).hint("give this one a name: --name NAME"))
}

async fn make<K: Kind>(
    client: &mut K::Client,
    args: &AddArgs,
    name: &str,
    spec: &K::Spec,
) -> Result<K, Failure> {
    let request = K::create_request(name.to_owned(), spec.clone(), args.dry_run);
    match K::create(client, request).await {
        Ok(made) => resource::answer(made),
        Err(status) if status.code() != Grpc::AlreadyExists => {
            Err(resource::failure::<K>(name, &status))
        }
        Err(_) if args.replace => replace(client, args, name, spec).await,
        Err(status) => Err(resource::failure::<K>(name, &status).hint(format!(
            "change it: fluxctl {0} set {name}; or all of it: --replace; or add one more: --name NAME",
            K::COMMAND
        ))),
    }
}

/// Changes the one that is there to this; where the daemon cannot, because they have too little in common, makes it anew.
async fn replace<K: Kind>(
    client: &mut K::Client,
    args: &AddArgs,
    name: &str,
    spec: &K::Spec,
) -> Result<K, Failure> {
    let request = K::update_request(name.to_owned(), spec.clone(), None, args.dry_run);
    let refusal = match K::update(client, request).await {
        Ok(changed) => return resource::answer(changed),
        Err(status) => status,
    };
    let other = refusal.code() == Grpc::FailedPrecondition
        && refusal.message().contains("cannot be changed");
    if !other || args.dry_run {
        return Err(resource::failure::<K>(name, &refusal));
    }
    let old: K = resource::known(client, name).await?;
    let failed = |status| resource::failure::<K>(name, &status);
    K::delete(client, name.to_owned()).await.map_err(failed)?;
    let request = K::create_request(name.to_owned(), spec.clone(), false);
    let refusal = match K::create(client, request).await {
        Ok(made) => return resource::answer(made),
        Err(status) => resource::failure::<K>(name, &status),
    };
    let back = old.spec().cloned();
    let back = back.map(|spec| K::create_request(name.to_owned(), spec, false));
    if let Some(request) = back {
        K::create(client, request).await.map_err(failed)?;
    }
    Err(refusal)
}

async fn verdict<K: Kind>(globals: &Globals, args: &AddArgs, one: &K) -> Result<(), Failure> {
    let (command, noun, name) = (K::COMMAND, K::NOUN, one.name());
    match one.state() {
        Some((State::Failed, reason)) => {
            let failure = Failure::new(Code::Failed, format!("{noun} {name}: {reason}"));
            Err(failure.hint(format!(
                "it stays in the list: fluxctl {command} delete {name}"
            )))
        }
        Some((State::Waiting, reason)) if !args.wait.is_zero() => {
            let missing = missing(reason);
            if missing.is_empty() {
                if !globals.quiet {
                    note(&format!("note: {noun} {name} waits: {reason}"));
                }
                return Ok(());
            }
            let mut hints = Vec::new();
            for thing in missing {
                hints.extend(meant::<K>(globals, thing).await);
            }
            hints.push(format!(
                "it was added and begins when that is there; to take it back: fluxctl {command} delete {name}"
            ));
            let failure = Failure::new(Code::NotFound, format!("{noun} {name} waits: {reason}"));
            Err(failure.hint(hints.join("\n")))
        }
        _ => Ok(()),
    }
}

/// Something that a daemon waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing<'a> {
    Ring(&'a str),
    Interface(&'a str),
}

/// The rings and interfaces that do not exist, out of a reason: "interface eth9 does not exist; ring a does not exist: make it".
fn missing(reason: &str) -> Vec<Missing<'_>> {
    let before = reason
        .match_indices(" does not exist")
        .map(|(at, _)| &reason[..at]);
    let named = before.filter_map(|text| {
        let (rest, name) = text.rsplit_once(' ').unwrap_or(("", text));
        match rest.rsplit_once([' ', ';']).map_or(rest, |(_, word)| word) {
            "interface" => Some(Missing::Interface(name)),
            "ring" => Some(Missing::Ring(name)),
            _ => None,
        }
    });
    named.collect()
}

/// What was probably meant, as advice.
async fn meant<K: Kind>(globals: &Globals, missing: Missing<'_>) -> Option<String> {
    let (wrong, known) = match missing {
        Missing::Ring(name) => {
            let rings = observe::list(&globals.rings()).unwrap_or_default();
            (name, rings.iter().map(ToString::to_string).collect())
        }
        Missing::Interface(name) => (name, interfaces::<K>(globals).await.unwrap_or_default()),
    };
    let known: Vec<String> = known;
    let near = nearest(wrong, known.iter().map(String::as_str))?;
    Some(format!("did you mean {near}?"))
}

/// The interfaces that the daemon sees: it may live in another network namespace.
async fn interfaces<K: Kind>(globals: &Globals) -> Option<Vec<String>> {
    let channel = globals.connect(K::DAEMON).await.ok()?;
    let mut client = DaemonServiceClient::new(channel);
    let reply = client.get_daemon(GetDaemonRequest {}).await.ok()?;
    let pid = reply.into_inner().daemon?.pid;
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    // Two lines of headings, then "  eth0: 5 6 ...".
    let names = table.lines().filter_map(|line| line.split_once(':'));
    Some(names.map(|(name, _)| name.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluxcap_proto::v1::{Tunnel, TunnelStatus};

    fn verdict(wait: &str, state: State, reason: &str) -> Result<(), Failure> {
        #[derive(Debug, clap::Parser)]
        struct Cli {
            #[command(flatten)]
            globals: Globals,
            #[command(flatten)]
            args: AddArgs,
        }
        let wait = format!("--wait={wait}");
        let words = [
            "x",
            &wait,
            "--run-dir",
            "/nonexistent",
            "--ring-dir",
            "/nonexistent",
        ];
        let cli = <Cli as clap::Parser>::parse_from(words);
        let one = Tunnel {
            name: "a".into(),
            status: Some(TunnelStatus {
                state: state.into(),
                reason: reason.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        crate::connect::block_on(super::verdict(&cli.globals, &cli.args, &one))
    }

    #[test]
    fn what_gives_up_at_once_is_a_failure_of_the_command() {
        let failed = verdict("0", State::Failed, "no such thing").unwrap_err();
        assert_eq!(failed.code, Code::Failed);
        assert_eq!(failed.message, "tunnel a: no such thing");
        assert!(failed.hint.ends_with("fluxctl tunnel delete a"));
        for state in [State::Starting, State::Running, State::Waiting] {
            assert_eq!(verdict("2", state, ""), Ok(()));
        }
    }

    #[test]
    fn what_waits_for_nothing_that_exists_is_not_found() {
        let reason = "interface eth9 does not exist";
        let failed = verdict("2s", State::Waiting, reason).unwrap_err();
        assert_eq!(failed.code, Code::NotFound);
        assert_eq!(failed.message, format!("tunnel a waits: {reason}"));
        assert_eq!(verdict("0", State::Waiting, reason), Ok(()));
        // Nobody mistyped a cable.
        let reason = "interface eth1 has no carrier";
        assert_eq!(verdict("2s", State::Waiting, reason), Ok(()));
    }

    #[test]
    fn missing_things_are_found_in_a_reason() {
        use Missing::{Interface, Ring};
        let reason = "interface eth9 does not exist; ring a does not exist: fluxctl ring create a --size 100m";
        assert_eq!(missing(reason), [Interface("eth9"), Ring("a")]);
        assert_eq!(
            missing("ring shm:a does not exist in /ram"),
            [Ring("shm:a")]
        );
        assert_eq!(missing("interface eth1 is down"), []);
        assert_eq!(missing(" does not exist"), []);
    }
}
