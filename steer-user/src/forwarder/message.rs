//! Messages over TCP: two octets of length and the message (RFC 1035, 4.2.2).

use std::{io, net::IpAddr, time::Duration};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, RData, RecordType,
        rdata::{HTTPS, SVCB, svcb::SvcParamValue},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

/// How long a message may take from its first octet on.
const SLOWEST: Duration = Duration::from_secs(10);

/// The next message; none when the other side has ended.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let first = match stream.read_u8().await {
        Ok(first) => first,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let rest = async {
        let length = u16::from_be_bytes([first, stream.read_u8().await?]);
        let mut message = vec![0; length.into()];
        stream.read_exact(&mut message).await?;
        Ok(Some(message))
    };
    timeout(SLOWEST, rest).await?
}

/// Sends a message.
pub(super) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &[u8],
) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    // In one piece: some servers read the length and the message as they come.
    let framed = [&length.to_be_bytes()[..], message].concat();
    timeout(SLOWEST, stream.write_all(&framed)).await?
}

/// The question of a plain query, as the kernel's program has it: recursion desired, one question
/// for data of the Internet, nothing else but EDNS. None: it is left alone.
pub(super) fn question(message: &[u8]) -> Option<Query> {
    let message = Message::from_vec(message).ok()?;
    let head = &message.metadata;
    let plain = head.message_type == MessageType::Query
        && head.op_code == OpCode::Query
        && head.recursion_desired
        && !head.authoritative
        && !head.truncation
        && message.answers.is_empty()
        && message.authorities.is_empty()
        && message.additionals.is_empty()
        && message.signature.is_none();
    let [query] = &message.queries[..] else {
        return None;
    };
    let data = !matches!(u16::from(query.query_type), 0 | 41 | 128..=255)
        && query.query_type != RecordType::OPT
        && query.query_class == DNSClass::IN;
    (plain && data).then(|| query.clone())
}

/// The id of a message.
pub(super) fn id(message: &[u8]) -> Option<[u8; 2]> {
    message.first_chunk().copied()
}

/// Reads what a resolver says to a question: the message, when it is an answer and no failure.
pub(super) fn good_answer(asked: [u8; 2], question: &Query, answer: &[u8]) -> Option<Message> {
    if id(answer) != Some(asked) {
        return None;
    }
    let message = Message::from_vec(answer).ok()?;
    let head = &message.metadata;
    let good = head.message_type == MessageType::Response
        && !head.truncation
        && matches!(
            head.response_code,
            ResponseCode::NoError | ResponseCode::NXDomain
        )
        && message.queries[..] == [question.clone()];
    good.then_some(message)
}

/// The addresses of an answer, hints of services included, and its shortest time to live in seconds.
pub(super) fn addresses(answer: &Message) -> (Vec<IpAddr>, u32) {
    let ttl = answer.answers.iter().map(|record| {
        // RFC 2181, 8: the topmost bit makes it zero.
        if record.ttl >> 31 == 0 { record.ttl } else { 0 }
    });
    let addresses = answer.answers.iter().flat_map(|record| match &record.data {
        RData::A(it) => vec![it.0.into()],
        RData::AAAA(it) => vec![it.0.into()],
        RData::SVCB(it) | RData::HTTPS(HTTPS(it)) => hints(it),
        _ => Vec::new(),
    });
    (addresses.collect(), ttl.min().unwrap_or(0))
}

fn hints(service: &SVCB) -> Vec<IpAddr> {
    let values = service.svc_params.iter().map(|(_, value)| value);
    values
        .flat_map(|value| match value {
            SvcParamValue::Ipv4Hint(hint) => hint.0.iter().map(|it| it.0.into()).collect(),
            SvcParamValue::Ipv6Hint(hint) => hint.0.iter().map(|it| it.0.into()).collect(),
            _ => Vec::new(),
        })
        .collect()
}
