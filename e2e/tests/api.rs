//! The control API is the same at all daemons: what does not exist, what is no value, what is too long. The methods come from the
//! descriptors, so that a new one is held to it as well.

use fluxcap_e2e::{Daemon, Dirs, Netns, root_or_skip};
use fluxcap_proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost::bytes::{Buf, BufMut};
use prost_reflect::{
    DescriptorPool, DynamicMessage, Kind, MessageDescriptor, MethodDescriptor, ReflectMessage as _,
    Value,
};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt as _;

/// A name that nothing has.
const NOBODY: &str = "nobody";

/// Messages as the bytes that they are.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length).to_vec()))
    }
}

/// Calls a method. Of a stream only the first message counts.
async fn call(
    channel: Channel,
    method: &MethodDescriptor,
    message: &DynamicMessage,
) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path = path.parse().expect("a path");
    let request = Request::new(message.encode_to_vec());
    if method.is_server_streaming() {
        let mut stream = client
            .server_streaming(request, path, Raw)
            .await?
            .into_inner();
        return stream.message().await.map(drop);
    }
    client.unary(request, path, Raw).await.map(drop)
}

/// A request for `NOBODY`.
fn request(kind: &MessageDescriptor) -> DynamicMessage {
    let mut message = DynamicMessage::new(kind.clone());
    let name = Value::String(NOBODY.to_owned());
    for (field, value) in [("name", name.clone()), ("names", Value::List(vec![name]))] {
        if let Some(field) = kind.get_field_by_name(field) {
            message.set_field(&field, value);
        }
    }
    message
}

/// Sets the first enumeration field that there is, at any depth, to a number that is no value; its path.
fn spoil(message: &mut DynamicMessage) -> Option<String> {
    for field in message.descriptor().fields() {
        let (value, within) = match field.kind() {
            Kind::Enum(_) => (Value::EnumNumber(9_999), String::new()),
            Kind::Message(inner) if !field.is_map() => {
                let mut inner = DynamicMessage::new(inner);
                let Some(path) = spoil(&mut inner) else {
                    continue;
                };
                (Value::Message(inner), format!(".{path}"))
            }
            _ => continue,
        };
        let (value, index) = match field.is_list() {
            true => (Value::List(vec![value]), "[0]"),
            false => (value, ""),
        };
        message.set_field(&field, value);
        return Some(format!("{}{index}{within}", field.name()));
    }
    None
}

#[test]
fn all_daemons_refuse_alike() {
    if !root_or_skip() {
        return;
    }
    let (netns, dirs) = (Netns::new(), Dirs::new());
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("descriptors");
    let mut asked = 0;
    for (name, service) in [
        ("ringd", "fluxcap.v1.RingService"),
        ("rxd", "fluxcap.v1.CaptureService"),
        ("txd", "fluxcap.v1.TransmitService"),
        ("tunneld", "fluxcap.v1.TunnelService"),
        ("mirrord", "fluxcap.v1.MirrorService"),
    ] {
        let args: &[&str] = match name {
            "mirrord" => &["--ephemeral", "--bpffs", "/nowhere"],
            _ => &["--ephemeral"],
        };
        let mut daemon = Daemon::start(name, &netns, &dirs, args);
        let service = pool.get_service_by_name(service).expect("a service");
        let status = |method: &MethodDescriptor, message: &DynamicMessage| {
            let answer = daemon.rpc(async |channel| call(channel, method, message).await);
            answer.expect("an answer").err()
        };
        for method in service.methods() {
            let what = method.full_name().to_owned();
            let mut message = request(&method.input());
            if ["Get", "Update", "Delete", "Watch"]
                .iter()
                .any(|verb| method.name().starts_with(verb))
            {
                let refused =
                    status(&method, &message).unwrap_or_else(|| panic!("{what}: {NOBODY}"));
                assert_eq!(refused.code(), Code::NotFound, "{what}: {refused}");
                asked += 1;
            }
            if let Some(path) = spoil(&mut message) {
                let refused = status(&method, &message).unwrap_or_else(|| panic!("{what}: {path}"));
                assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused}");
                let details = refused.get_details_bad_request();
                let details = details.unwrap_or_else(|| panic!("{what}: no details"));
                assert_eq!(details.field_violations[0].field, path, "{what}");
                asked += 1;
            }
            if let Some(field) = method.input().get_field_by_name("name") {
                message.set_field(&field, Value::String("x".repeat((1 << 20) + 1)));
                let refused = status(&method, &message).unwrap_or_else(|| panic!("{what}: long"));
                assert_eq!(refused.code(), Code::OutOfRange, "{what}: {refused}");
                asked += 1;
            }
        }
        assert!(daemon.ended().is_none(), "{name}");
    }
    // Four verbs, two with a spec, four with a name, at each.
    assert_eq!(asked, 5 * (4 + 2 + 4));
}
