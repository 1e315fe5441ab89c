//! What a service gets: ports and virtual addresses.

use model::{
    NetworkId,
    object::{Network, Service, ServiceEndpoint, Vip},
    spec::EndpointMode,
};
use store::{State, Transaction};

use super::{AddressBook, AllocateError, ingress, ports};

/// Fills in the service's endpoint as its spec wants it. What it had and still needs it keeps; what
/// it no longer needs is given back. The caller puts the service.
///
/// # Errors
/// The service and the transaction are as before.
pub fn allocate_service(tx: &mut Transaction, service: &mut Service) -> Result<(), AllocateError> {
    let (ports, last_port) = ports::allocate(tx.state(), service)?;
    let mut book = None;
    let vips = allocate_vips(tx.state(), service, &mut book)?;
    if let Some(book) = book {
        book.save_cursors(tx);
    }
    if let Some(last) = last_port {
        save_port_cursor(tx, last);
    }
    service.endpoint = ServiceEndpoint {
        mode: service.spec.endpoint.mode,
        ports,
        vips,
    };
    Ok(())
}

/// `book` is made only when an address is wanted: that reads every task.
fn allocate_vips(
    state: &State,
    service: &Service,
    book: &mut Option<AddressBook>,
) -> Result<Vec<Vip>, AllocateError> {
    if service.spec.endpoint.mode == EndpointMode::Dnsrr {
        return Ok(Vec::new());
    }
    let mut vips: Vec<Vip> = Vec::new();
    for attachment in &service.spec.task.networks {
        let id = attachment.network;
        if vips.iter().any(|vip| vip.network == id) {
            continue;
        }
        let held = service.endpoint.vips.iter().find(|vip| vip.network == id);
        vips.push(match held {
            Some(vip) => *vip,
            None => new_vip(state, service, id, book)?,
        });
    }
    Ok(vips)
}

fn new_vip(
    state: &State,
    service: &Service,
    id: NetworkId,
    book: &mut Option<AddressBook>,
) -> Result<Vip, AllocateError> {
    let network = state.network(id).ok_or(AllocateError::UnknownNetwork(id))?;
    let book = book.get_or_insert_with(|| AddressBook::of(state));
    let wanted = || format!("the VIP of service {}", service.spec.name);
    let addr = book.next(network, wanted)?;
    book.hand_out(id, addr);
    Ok(Vip {
        network: id,
        addr,
        prefix_len: network.subnet.prefix_len(),
    })
}

fn save_port_cursor(tx: &mut Transaction, last: u16) {
    if let Some(ingress) = ingress(tx.state()) {
        let mut ingress = Network::clone(ingress);
        ingress.cursor.port = Some(last);
        tx.put(ingress).expect("read in this transaction");
    }
}
