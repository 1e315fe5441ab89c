//! One query, from its bytes to the bytes of its answer. No I/O.

use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, PTR},
    },
};
use rand::seq::SliceRandom;

use crate::names::{Names, Reverse};

/// Seconds that a client may keep an answer: services and tasks come and go.
const TTL_SECS: u32 = 3;

/// The largest UDP answer without EDNS (RFC 1035, 4.2.1), and with it, whatever the client says.
const UDP_BYTES: usize = 512;
const UDP_BYTES_MAX: usize = 4096;

/// The largest answer over TCP: its length is told in 16 bits.
const TCP_BYTES_MAX: usize = u16::MAX as usize;

/// A DNS header.
const HEADER_BYTES: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// What to do with a packet.
#[derive(Debug)]
pub(crate) enum Verdict {
    Reply(Vec<u8>),
    /// Not a name of ours.
    Forward(Forward),
    /// No query: to answer would only help someone who spoofs.
    Ignore,
}

/// A query for the upstreams.
#[derive(Debug)]
pub(crate) struct Forward {
    query: Message,
    transport: Transport,
}

/// Decides what becomes of a packet.
pub(crate) fn handle(packet: &[u8], transport: Transport, names: &Names<'_>) -> Verdict {
    let is_response = packet.get(2).is_none_or(|flags| flags & 0x80 != 0);
    if packet.len() < HEADER_BYTES || is_response {
        return Verdict::Ignore;
    }
    let Ok(query) = Message::from_vec(packet) else {
        let id = u16::from_be_bytes([packet[0], packet[1]]);
        let refusal = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
        return reply(refusal, UDP_BYTES);
    };
    let limit = limit(&query, transport);
    if query.metadata.op_code != OpCode::Query {
        return reply(response(&query, ResponseCode::NotImp), limit);
    }
    if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return reply(response(&query, ResponseCode::BADVERS), limit);
    }
    let [question] = query.queries.as_slice() else {
        return reply(response(&query, ResponseCode::FormErr), limit);
    };
    match answers(question, names) {
        Some(Ok(answers)) => {
            let mut message = response(&query, ResponseCode::NoError);
            message.metadata.authoritative = true;
            message.answers = answers;
            reply(message, limit)
        }
        Some(Err(code)) => reply(response(&query, code), limit),
        None => Verdict::Forward(Forward { query, transport }),
    }
}

impl Forward {
    /// The answer when no upstream gives one.
    pub fn failure(&self) -> Vec<u8> {
        let message = response(&self.query, ResponseCode::ServFail);
        encode(message, self.limit()).unwrap_or_default()
    }

    pub fn limit(&self) -> usize {
        limit(&self.query, self.transport)
    }

    pub fn transport(&self) -> Transport {
        self.transport
    }
}

/// Our records for a question, or how to refuse it. `None` when others are to be asked.
fn answers(question: &Query, names: &Names<'_>) -> Option<Result<Vec<Record>, ResponseCode>> {
    if question.query_class() != DNSClass::IN {
        return None;
    }
    let name = question.name();
    let data: Vec<RData> = if let Some(addr) = reverse_address(name) {
        let pointer = match names.reverse(addr) {
            Reverse::Name(pointer) => Name::from_utf8(format!("{pointer}.")).ok()?,
            Reverse::Nobody => return Some(Err(ResponseCode::NXDomain)),
            Reverse::Foreign => return None,
        };
        let pointer = RData::PTR(PTR(pointer));
        wants(question, RecordType::PTR)
            .then_some(pointer)
            .into_iter()
            .collect()
    } else {
        let mut addresses = names.resolve(&text(name)?)?;
        addresses.retain(|_| wants(question, RecordType::A));
        addresses.shuffle(&mut rand::rng());
        addresses
            .into_iter()
            .map(|addr| RData::A(A(addr)))
            .collect()
    };
    let record = |data| Record::from_rdata(name.clone(), TTL_SECS, data);
    Some(Ok(data.into_iter().map(record).collect()))
}

fn wants(question: &Query, kind: RecordType) -> bool {
    let asked = question.query_type();
    asked == kind || asked == RecordType::ANY
}

/// A name as text without the last dot; `None` for what cannot be a name of ours.
fn text(name: &Name) -> Option<String> {
    let labels = name.iter().map(|label| str::from_utf8(label).ok());
    let labels: Vec<&str> = labels.collect::<Option<_>>()?;
    // A dot inside a label is not a dot between labels.
    let plain = labels.iter().all(|label| !label.contains('.'));
    plain.then(|| labels.join("."))
}

/// The address that `d.c.b.a.in-addr.arpa` asks for.
fn reverse_address(name: &Name) -> Option<Ipv4Addr> {
    match name.parse_arpa_name().ok()?.addr() {
        // A shorter name asks for a network.
        IpAddr::V4(addr) if name.num_labels() == 6 => Some(addr),
        _ => None,
    }
}

/// The bytes that the client can take.
fn limit(query: &Message, transport: Transport) -> usize {
    let asked = query
        .edns
        .as_ref()
        .map_or(UDP_BYTES, |edns| edns.max_payload().into());
    match transport {
        Transport::Tcp => TCP_BYTES_MAX,
        Transport::Udp => asked.clamp(UDP_BYTES, UDP_BYTES_MAX),
    }
}

/// An empty response to a query.
fn response(query: &Message, code: ResponseCode) -> Message {
    let asked = &query.metadata;
    let mut message = Message::new(asked.id, MessageType::Response, asked.op_code);
    message.metadata.response_code = code;
    message.metadata.recursion_desired = asked.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.checking_disabled = asked.checking_disabled;
    // Of a packet with many questions, which nobody answers, none is sent back.
    if let [question] = query.queries.as_slice() {
        message.queries.push(question.clone());
    }
    message.edns = query.edns.as_ref().map(|_| {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX as u16);
        edns
    });
    message
}

fn reply(message: Message, limit: usize) -> Verdict {
    encode(message, limit).map_or(Verdict::Ignore, Verdict::Reply)
}

/// The bytes of a message: with as many of its answers as fit, and the truncation bit when these
/// are not all. `None` for what cannot be encoded (questions we could decode can be).
fn encode(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    // More than 64 KiB is an error of the encoder.
    let fitting = |message: &Message| message.to_vec().ok().filter(|bytes| bytes.len() <= limit);
    if let Some(bytes) = fitting(&message) {
        return Some(bytes);
    }
    message.metadata.truncation = true;
    let all = std::mem::take(&mut message.answers);
    // Records differ in size: the encoder compresses only so many names. So the count is searched.
    let (mut bytes, mut fits, mut too_many) = (fitting(&message)?, 0, all.len());
    while too_many - fits > 1 {
        let middle = fits.midpoint(too_many);
        message.answers = all[..middle].to_vec();
        match fitting(&message) {
            Some(more) => (bytes, fits) = (more, middle),
            None => too_many = middle,
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use model::feed::NodeView;
    use proptest::prelude::*;

    use super::*;
    use crate::names::tests::{NET_A, NET_B, view};

    fn ask(view: &NodeView, packet: &[u8], transport: Transport) -> Verdict {
        handle(packet, transport, &Names::new(view, &[NET_A]))
    }

    fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        // Keeps upper case, as a packet does.
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn answered(message: &Message) -> Message {
        match ask(&view(), &message.to_vec().unwrap(), Transport::Udp) {
            Verdict::Reply(reply) => Message::from_vec(&reply).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_answer_repeats_id_and_question_as_written() {
        let query = question("WeB.", RecordType::A);
        let reply = answered(&query);
        assert_eq!(reply.metadata.id, query.metadata.id);
        assert_eq!(reply.queries[0].name().to_string(), "WeB.");
        assert_eq!(reply.answers.len(), 1);
        assert_eq!((reply.answers[0].ttl, reply.edns), (TTL_SECS, None));
    }

    #[test]
    fn other_types_of_a_known_name_are_empty_and_no_error() {
        for kind in [
            RecordType::AAAA,
            RecordType::MX,
            RecordType::HTTPS,
            RecordType::TXT,
        ] {
            let reply = answered(&question("web.", kind));
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
            assert!(reply.answers.is_empty());
        }
        assert_eq!(
            answered(&question("web.", RecordType::ANY)).answers.len(),
            1
        );
    }

    #[test]
    fn addresses_have_names_and_unused_ones_have_none() {
        let reply = answered(&question("2.1.0.10.in-addr.arpa.", RecordType::PTR));
        assert_eq!(reply.answers[0].data.to_string(), "web.net-a.");
        let reply = answered(&question("200.1.0.10.in-addr.arpa.", RecordType::PTR));
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    }

    #[test]
    fn foreign_names_and_addresses_are_forwarded() {
        for (name, kind) in [
            ("example.org.", RecordType::A),
            ("web.example.org.", RecordType::A),
            ("1.0.0.127.in-addr.arpa.", RecordType::PTR),
            ("1.0.10.in-addr.arpa.", RecordType::PTR),
            (".", RecordType::NS),
        ] {
            let packet = question(name, kind).to_vec().unwrap();
            let verdict = ask(&view(), &packet, Transport::Udp);
            assert!(
                matches!(verdict, Verdict::Forward(_)),
                "{name}: {verdict:?}"
            );
        }
    }

    #[test]
    fn what_is_not_a_plain_query_is_refused_or_ignored() {
        let mut notify = question("web.", RecordType::A);
        notify.metadata.op_code = OpCode::Notify;
        assert_eq!(
            answered(&notify).metadata.response_code,
            ResponseCode::NotImp
        );

        let mut two = question("web.", RecordType::A);
        two.add_query(Query::query(Name::root(), RecordType::A));
        assert_eq!(answered(&two).metadata.response_code, ResponseCode::FormErr);

        let mut newer = question("web.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_version(1);
        newer.set_edns(edns);
        // The same number as BADSIG, which it decodes as.
        let code = u16::from(answered(&newer).metadata.response_code);
        assert_eq!(code, u16::from(ResponseCode::BADVERS));

        let mut response = question("web.", RecordType::A);
        response.metadata.message_type = MessageType::Response;
        for packet in [response.to_vec().unwrap(), vec![0; 11], vec![]] {
            assert!(matches!(
                ask(&view(), &packet, Transport::Udp),
                Verdict::Ignore
            ));
        }
        let cut = &question("web.", RecordType::A).to_vec().unwrap()[..14];
        let Verdict::Reply(reply) = ask(&view(), cut, Transport::Udp) else {
            panic!()
        };
        assert_eq!(reply[3] & 0xf, 1, "FORMERR");
    }

    proptest! {
        /// Random bytes, random bytes after a valid header, and valid queries with bytes changed:
        /// no panic, and a reply is a response to the same id that fits.
        #[test]
        fn no_packet_does_harm(
            noise in prop::collection::vec(any::<u8>(), 0..600),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            id: u16,
        ) {
            let view = view();
            let mut headed = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
            headed.extend(&noise);
            let mut query = question("tasks.web.net-a.", RecordType::A);
            query.set_edns(Edns::new());
            let mut changed = query.to_vec().unwrap();
            for (at, byte) in flips {
                let at = at.index(changed.len());
                changed[at] ^= byte;
            }
            for mut packet in [noise, headed, changed] {
                if packet.len() >= 2 {
                    packet[..2].copy_from_slice(&id.to_be_bytes());
                }
                for transport in [Transport::Udp, Transport::Tcp] {
                    match handle(&packet, transport, &Names::new(&view, &[NET_A, NET_B])) {
                        Verdict::Reply(reply) => {
                            prop_assert_eq!(&reply[..2], &id.to_be_bytes());
                            prop_assert!(reply[2] & 0x80 != 0);
                            let max = if transport == Transport::Udp { UDP_BYTES_MAX } else { TCP_BYTES_MAX };
                            prop_assert!(reply.len() <= max);
                        }
                        Verdict::Forward(forward) => {
                            prop_assert_eq!(forward.failure()[3] & 0xf, 2);
                        }
                        Verdict::Ignore => {}
                    }
                }
            }
        }
    }
}
