//! What is the same for every kind of resource that a daemon serves: add, list, show, set and delete.
//!
//! A kind says how its daemon is asked and what its tables hold; the commands here do the rest.

use crate::connect::Globals;
use crate::exit::{Code, Failure, nearest};
use crate::names;
use crate::output::{Block, Deleted, Report, note, print, printable};
use fluxcap_headers::filter_doubt;
use fluxcap_proto::v1::State;
use prost_types::FieldMask;
use serde::Serialize;
use serde_json::Value;
use tonic::{Status, transport::Channel};

/// A daemon's answer.
pub(crate) type Reply<T> = Result<T, Status>;

/// A kind of resource: the message that describes one.
pub(crate) trait Kind: Default + Serialize {
    /// What one is called: "capture".
    const NOUN: &'static str;
    /// The command for it: "rx" as in `fluxctl rx`.
    const COMMAND: &'static str;
    /// The daemon that serves it.
    const DAEMON: &'static str;
    /// The header of the table that has one row for each.
    const HEADER: &'static [&'static str];

    /// The daemon's client.
    type Client;
    /// What is asked for.
    type Spec: Clone;
    /// What makes one.
    type Create;
    /// What changes one.
    type Update;

    fn client(channel: Channel) -> Self::Client;
    // The five calls. Nothing instead of a resource: the daemon's answer was empty.
    async fn create(client: &mut Self::Client, request: Self::Create) -> Reply<Option<Self>>;
    async fn list(client: &mut Self::Client) -> Reply<Vec<Self>>;
    async fn get(client: &mut Self::Client, name: String) -> Reply<Option<Self>>;
    async fn update(client: &mut Self::Client, request: Self::Update) -> Reply<Option<Self>>;
    async fn delete(client: &mut Self::Client, name: String) -> Reply<()>;

    fn create_request(name: String, spec: Self::Spec, validate_only: bool) -> Self::Create;
    fn update_request(
        name: String,
        spec: Self::Spec,
        update_mask: Option<FieldMask>,
        validate_only: bool,
    ) -> Self::Update;

    fn spec(&self) -> Option<&Self::Spec>;
    /// Whether two specs are of the same work, if perhaps with other options: the second is then a change of the first, not one more.
    fn same_work(one: &Self::Spec, other: &Self::Spec) -> bool;

    fn name(&self) -> &str;
    /// Its pcap-filter(7) expression; empty for none.
    fn filter(&self) -> &str {
        ""
    }
    /// Its state and the reason for that, unless the daemon said nothing about it.
    fn state(&self) -> Option<(State, &str)>;
    /// Its row in the table.
    fn row(&self) -> Vec<String>;
    /// Everything about it.
    fn blocks(&self) -> Vec<Block>;

    /// What to do about `name`, which is not there and resembles nothing that is.
    fn remedy(_name: &str) -> String {
        let (command, noun) = (Self::COMMAND, Self::NOUN);
        format!("fluxctl {command} list shows the {noun}s that there are")
    }
}

/// The half of an `impl Kind` that differs in nothing but the names of the generated service: client, fields, calls with their
/// requests.
macro_rules! calls {
    (
        $client:ident, $one:ident, $all:ident, $spec:ident,
        $create:ident($create_request:ident), $update:ident($update_request:ident),
        $list:ident($list_request:ident), $get:ident($get_request:ident), $delete:ident($delete_request:ident),
        $($field:ident: $value:expr,)*
    ) => {
        type Client = $client<tonic::transport::Channel>;
        type Spec = $spec;
        type Create = $create_request;
        type Update = $update_request;

        fn client(channel: tonic::transport::Channel) -> Self::Client {
            $client::new(channel)
        }

        async fn create(
            client: &mut Self::Client,
            request: Self::Create,
        ) -> $crate::resource::Reply<Option<Self>> {
            Ok(client.$create(request).await?.into_inner().$one)
        }

        async fn update(
            client: &mut Self::Client,
            request: Self::Update,
        ) -> $crate::resource::Reply<Option<Self>> {
            Ok(client.$update(request).await?.into_inner().$one)
        }

        async fn list(client: &mut Self::Client) -> $crate::resource::Reply<Vec<Self>> {
            let mut all = Vec::new();
            let mut page_token = String::new();
            loop {
                let request = $list_request {
                    page_token,
                    ..$list_request::default()
                };
                let mut page = client.$list(request).await?.into_inner();
                all.append(&mut page.$all);
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    return Ok(all);
                }
            }
        }

        async fn get(
            client: &mut Self::Client,
            name: String,
        ) -> $crate::resource::Reply<Option<Self>> {
            Ok(client.$get($get_request { name }).await?.into_inner().$one)
        }

        #[allow(clippy::needless_update, reason = "some requests have more fields")]
        async fn delete(client: &mut Self::Client, name: String) -> $crate::resource::Reply<()> {
            let request = $delete_request {
                name,
                ..Default::default()
            };
            client.$delete(request).await.map(drop)
        }

        fn create_request(name: String, spec: $spec, validate_only: bool) -> $create_request {
            $create_request {
                name,
                spec: Some(spec),
                validate_only,
                $($field: $value,)*
            }
        }

        fn update_request(
            name: String,
            spec: $spec,
            update_mask: Option<prost_types::FieldMask>,
            validate_only: bool,
        ) -> $update_request {
            $update_request {
                name,
                spec: Some(spec),
                update_mask,
                validate_only,
            }
        }

        fn spec(&self) -> Option<&$spec> {
            self.spec.as_ref()
        }

        fn name(&self) -> &str {
            &self.name
        }

        fn state(&self) -> Option<(fluxcap_proto::v1::State, &str)> {
            let status = self.status.as_ref()?;
            Some((status.state(), &status.reason))
        }
    };
}
pub(crate) use calls;

/// Connects to the daemon that serves this kind.
pub(crate) async fn connect<K: Kind>(globals: &Globals) -> Result<K::Client, Failure> {
    Ok(K::client(globals.connect(K::DAEMON).await?))
}

/// The mask of an update of these fields.
pub(crate) fn mask(fields: &[&str]) -> Option<FieldMask> {
    let paths = fields.iter().map(|field| (*field).to_owned()).collect();
    Some(FieldMask { paths })
}

/// Shows the row of one that was just added or changed.
pub(crate) fn changed<K: Kind>(globals: &Globals, one: K) -> Result<(), Failure> {
    if let Some(doubt) = filter_doubt(one.filter()) {
        note(&format!(
            "the filter of {} {}: {doubt}",
            K::NOUN,
            printable(one.name())
        ));
    }
    match (globals.quiet, globals.verbose) {
        (true, _) => Ok(()),
        (false, true) => print(globals.output, &Shown(one)),
        (false, false) => print(globals.output, &Changed(one)),
    }
}

/// Shows a table of all.
pub(crate) async fn list<K: Kind>(globals: &Globals) -> Result<(), Failure> {
    let mut client = connect::<K>(globals).await?;
    let all = all::<K>(&mut client).await?;
    match globals.verbose {
        true => print(globals.output, &AllShown(all)),
        false => print(globals.output, &Listed(all)),
    }
}

/// Shows everything about those named, or about all.
pub(crate) async fn show<K: Kind>(globals: &Globals, names: &[String]) -> Result<(), Failure> {
    let mut client = connect::<K>(globals).await?;
    if names.is_empty() {
        return print(globals.output, &AllShown(all::<K>(&mut client).await?));
    }
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for name in names {
        match known::<K>(&mut client, name).await {
            Ok(one) => found.push(one),
            Err(failure) => failures.push(failure),
        }
    }
    match (names, found.pop()) {
        (_, None) => {}
        ([_], Some(one)) => print(globals.output, &Shown(one))?,
        (_, Some(last)) => {
            found.push(last);
            print(globals.output, &AllShown(found))?;
        }
    }
    Failure::all(failures)
}

/// Changes one and shows its row. `name` is the one in the request.
pub(crate) async fn set<K: Kind>(
    globals: &Globals,
    name: &str,
    request: K::Update,
) -> Result<(), Failure> {
    changed(globals, update::<K>(globals, name, request).await?)
}

/// Deletes as many as can be.
pub(crate) async fn delete<K: Kind>(globals: &Globals, names: &[String]) -> Result<(), Failure> {
    let mut client = connect::<K>(globals).await?;
    let (mut deleted, mut failures) = (Vec::new(), Vec::new());
    for name in names {
        match K::delete(&mut client, name.clone()).await {
            Ok(()) => deleted.push(name.clone()),
            Err(status) => failures.push(advise::<K>(&mut client, name, &status).await),
        }
    }
    if !deleted.is_empty() && !globals.quiet {
        let (noun, names) = (K::NOUN, deleted);
        print(globals.output, &Deleted { noun, names })?;
    }
    Failure::all(failures)
}

/// All that the daemon knows.
pub(crate) async fn all<K: Kind>(client: &mut K::Client) -> Result<Vec<K>, Failure> {
    let all = K::list(client).await;
    all.map_err(|status| Failure::from_status(&format!("{}s", K::NOUN), &status))
}

/// One by name.
pub(crate) async fn get<K: Kind>(globals: &Globals, name: &str) -> Result<K, Failure> {
    known(&mut connect::<K>(globals).await?, name).await
}

/// The same of a daemon that is connected to.
pub(crate) async fn known<K: Kind>(client: &mut K::Client, name: &str) -> Result<K, Failure> {
    match K::get(client, name.to_owned()).await {
        Ok(one) => answer(one),
        Err(status) => Err(advise::<K>(client, name, &status).await),
    }
}

/// What the daemon's answer holds.
pub(crate) fn answer<K: Kind>(one: Option<K>) -> Result<K, Failure> {
    one.ok_or_else(|| {
        let message = format!("{} sent an empty answer", K::DAEMON);
        Failure::new(Code::Failed, message)
    })
}

/// Changes one, and gives it as it is now.
pub(crate) async fn update<K: Kind>(
    globals: &Globals,
    name: &str,
    request: K::Update,
) -> Result<K, Failure> {
    let mut client = connect::<K>(globals).await?;
    match K::update(&mut client, request).await {
        Ok(changed) => answer(changed),
        Err(status) => Err(advise::<K>(&mut client, name, &status).await),
    }
}

/// The failure of a change of `name` without anything to change.
pub(crate) fn nothing_to_change<K: Kind>(name: &str) -> Failure {
    let (command, noun) = (K::COMMAND, K::NOUN);
    Failure::new(Code::Usage, format!("nothing to change in {noun} {name}")).hint(format!(
        "give the options to change; fluxctl {command} set --help lists them"
    ))
}

/// The daemon's refusal of something about `name`.
pub(crate) fn failure<K: Kind>(name: &str, status: &Status) -> Failure {
    Failure::from_status(&format!("{} {name}", K::NOUN), status)
}

/// The failure, with what to do about one that is not there.
pub(crate) async fn advise<K: Kind>(
    client: &mut K::Client,
    name: &str,
    status: &Status,
) -> Failure {
    let failure = failure::<K>(name, status);
    if failure.code != Code::NotFound {
        return failure;
    }
    let known = all::<K>(client).await.unwrap_or_default();
    failure.hint(missing_hint::<K>(name, known.iter().map(K::name)))
}

/// What to do about one that is not there: the name that was probably meant, or the remedy.
pub(crate) fn missing_hint<'a, K: Kind>(
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> String {
    match nearest(name, known) {
        Some(near) => format!("did you mean {near}?"),
        None => K::remedy(name),
    }
}

/// Several, one line each.
pub(crate) struct Listed<K>(pub(crate) Vec<K>);

impl<K: Kind> Report for Listed<K> {
    fn json(&self) -> Value {
        names::json(&self.0)
    }

    fn blocks(&self) -> Vec<Block> {
        vec![Block::Rows(K::HEADER, self.0.iter().map(K::row).collect())]
    }
}

/// One that was just added or changed: one line.
struct Changed<K>(K);

impl<K: Kind> Report for Changed<K> {
    fn json(&self) -> Value {
        names::json(&self.0)
    }

    fn blocks(&self) -> Vec<Block> {
        vec![Block::Rows(K::HEADER, vec![self.0.row()])]
    }
}

/// One with everything about it.
pub(crate) struct Shown<K>(pub(crate) K);

impl<K: Kind> Report for Shown<K> {
    fn json(&self) -> Value {
        names::json(&self.0)
    }

    fn blocks(&self) -> Vec<Block> {
        self.0.blocks()
    }
}

/// Several with everything about each.
struct AllShown<K>(Vec<K>);

impl<K: Kind> Report for AllShown<K> {
    fn json(&self) -> Value {
        names::json(&self.0)
    }

    fn blocks(&self) -> Vec<Block> {
        self.0.iter().flat_map(K::blocks).collect()
    }
}
