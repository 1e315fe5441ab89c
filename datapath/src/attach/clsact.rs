//! The ingress of interfaces before Linux 6.6: filters of a clsact qdisc that run our programs and
//! take their verdicts (cls_bpf in direct-action mode).
//!
//! A filter holds its program and lives as long as its interface, so it needs no pin. Ours have one
//! priority and a handle for each hook: what is there is found again by these, is never there twice,
//! and is replaced in place, in one step. Filters of others stay where they are. So does the qdisc
//! when our filters go, as nobody knows who else counts on it.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{
        TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage,
        TcOption,
    },
};
use nix::net::if_::if_nameindex;
use std::os::fd::AsRawFd;

use super::Hook;
use crate::{load::Loaded, netlink};

/// The first: filters of others that let a packet go would hide it from us.
const PRIORITY: u16 = 1;
/// "sn" and a number, which is never given to another hook: filters outlive the build that made
/// them.
const HANDLES: [(Hook, u32); 5] = [
    (Hook::UplinkTc, 0x736e_0001),
    (Hook::Vxlan, 0x736e_0002),
    (Hook::Task, 0x736e_0003),
    (Hook::Gateway, 0x736e_0004),
    (Hook::Ordered, 0x736e_0005),
];

const INGRESS: TcHandle = TcHandle {
    major: u16::MAX,
    minor: TcHandle::MIN_INGRESS,
};
const CLSACT: TcHandle = TcHandle {
    major: u16::MAX,
    minor: 0,
};

/// What was to be done for a filter to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Nothing,
    Attached,
    /// It ran the program of this id.
    Replaced(u32),
}

/// A filter of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Filter {
    hook: Hook,
    program_id: u32,
}

/// Makes the interface's ingress run `program`.
///
/// # Errors
/// `EEXIST` when the hook's handle is another's, `EINVAL` when the priority is taken by filters of
/// another kind.
pub(super) fn attach(ifindex: u32, hook: Hook, program: &Loaded) -> io::Result<Done> {
    let present = filters(ifindex)?;
    let done = match present.iter().find(|filter| filter.hook == hook) {
        Some(filter) if filter.program_id == program.id => return Ok(Done::Nothing),
        Some(filter) => Done::Replaced(filter.program_id),
        None => {
            ensure_qdisc(ifindex)?;
            Done::Attached
        }
    };
    // With a handle that is there, the filter is changed; with NLM_F_EXCL, it must not be there.
    let flags = match done {
        Done::Replaced(_) => 0,
        _ => NLM_F_CREATE | NLM_F_EXCL,
    };
    let options = [
        TcFilterBpfOption::ProgFd(program.fd.as_raw_fd() as u32),
        TcFilterBpfOption::ProgName(hook.program().to_owned()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    let handle = handle(hook).expect("the programs of tc have handles");
    let mut message = of_filter(ifindex, handle);
    message.attributes = vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(options.map(TcOption::Bpf).to_vec()),
    ];
    netlink::change(RouteNetlinkMessage::NewTrafficFilter(message), flags)?;
    Ok(done)
}

/// Takes our filter off; none there is no error.
pub(super) fn detach(ifindex: u32, hook: Hook) -> io::Result<bool> {
    let Some(handle) = handle(hook) else {
        return Ok(false);
    };
    if !filters(ifindex)?.iter().any(|filter| filter.hook == hook) {
        return Ok(false);
    }
    let message = of_filter(ifindex, handle);
    match netlink::change(RouteNetlinkMessage::DelTrafficFilter(message), 0) {
        // Gone meanwhile, or with its interface.
        Err(error) if is_gone(&error) => Ok(false),
        outcome => outcome.map(|()| true),
    }
}

/// Every hook of ours on every interface of this network namespace.
pub(super) fn attached() -> io::Result<Vec<(u32, Hook)>> {
    let mut found = Vec::new();
    for interface in &if_nameindex()? {
        let index = interface.index();
        found.extend(
            filters(index)?
                .into_iter()
                .map(|filter| (index, filter.hook)),
        );
    }
    Ok(found)
}

/// Our filters on an interface; none when it is gone.
fn filters(ifindex: u32) -> io::Result<Vec<Filter>> {
    let answers = netlink::dump(RouteNetlinkMessage::GetTrafficFilter(of_filter(ifindex, 0)))?;
    let filters = answers.iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewTrafficFilter(message) => ours(message),
        _ => None,
    });
    Ok(filters.collect())
}

/// By handle and name: another may have chosen the same handle.
fn ours(message: &TcMessage) -> Option<Filter> {
    let options = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })?;
    let bpf = options.iter().filter_map(|option| match option {
        TcOption::Bpf(bpf) => Some(bpf),
        _ => None,
    });
    let (mut name, mut program_id) = (None, None);
    for option in bpf {
        match option {
            TcFilterBpfOption::ProgName(said) => name = Some(said),
            TcFilterBpfOption::ProgId(id) => program_id = Some(*id),
            _ => {}
        }
    }
    let handle = u32::from(message.header.handle);
    let (hook, _) = HANDLES.into_iter().find(|(_, ours)| *ours == handle)?;
    (name? == hook.program()).then_some(Filter {
        hook,
        program_id: program_id?,
    })
}

fn ensure_qdisc(ifindex: u32) -> io::Result<()> {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.handle = CLSACT;
    message.header.parent = TcHandle::CLSACT;
    message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    let add = RouteNetlinkMessage::NewQueueDiscipline(message);
    match netlink::change(add, NLM_F_CREATE | NLM_F_EXCL) {
        // Another's clsact or ingress qdisc serves as well.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        outcome => outcome,
    }
}

fn of_filter(ifindex: u32, handle: u32) -> TcMessage {
    // Priority and protocol share a word; the protocol is in network order.
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    TcMessage::from_parts(
        TcHeader {
            index: ifindex.cast_signed(),
            handle: handle.into(),
            parent: INGRESS,
            info: u32::from(PRIORITY) << 16 | u32::from(protocol),
            ..TcHeader::default()
        },
        Vec::new(),
    )
}

fn handle(hook: Hook) -> Option<u32> {
    let known = HANDLES.into_iter().find(|(known, _)| *known == hook);
    known.map(|(_, handle)| handle)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)
    )
}
