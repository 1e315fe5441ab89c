//! From a task into an overlay network: straight to an endpoint, or through a VIP packet by packet.

use dataplane_abi::{
    BACKEND_ACTIVE, BackendValue, Be16, Be32, DropReason, ENDPOINT_HAS_VIP_FLOWS, EndpointValue,
    NodeConfig, ServiceValue, VIP_FLOW_HAIRPIN, VethValue, VipFlowKey,
    net::task_mac,
    seat::{Seat, VipClaim, choose_port},
};

use super::{Lookup, Outcome, Sent, Step, Trail};

impl<L: Lookup> Trail<'_, L> {
    pub(super) fn task(&mut self, ifindex: u32, now: u64) -> Result<Outcome, DropReason> {
        let veth = self.veth(ifindex).ok_or(DropReason::UnknownInterface)?;
        if self.probe.src_addr() != veth.addr {
            return Err(DropReason::SpoofedSource);
        }
        let config = self.config()?;
        let Some(endpoint) = self.endpoint(veth.vni, self.probe.dst_addr()) else {
            let vip = self.vip(veth.vni, self.probe.dst_addr());
            let vip = vip.ok_or(DropReason::UnknownDestination)?;
            self.note(Step::Vip {
                backends: vip.backend_count,
            });
            return self.outbound(&veth, ifindex, &vip, &config, now);
        };
        self.note(Step::Endpoint {
            endpoint: endpoint.endpoint,
            vtep: endpoint.vtep,
        });
        if endpoint.vtep.is_zero() {
            return self.neighbour(&veth, &endpoint);
        }
        Ok(Outcome::Tunnel {
            vtep: endpoint.vtep.into(),
            vni: veth.vni,
            sent: self.sent(
                self.probe.src.0.into(),
                self.probe.dst_addr(),
                endpoint.mac,
                veth.mac,
            ),
        })
    }

    fn sent(&self, src: Be32, dst: Be32, dst_mac: [u8; 6], src_mac: [u8; 6]) -> Sent {
        Sent {
            src: (src.into(), self.probe.src.1),
            dst: (dst.into(), self.probe.dst.1),
            dst_mac,
            src_mac,
            routed: false,
        }
    }

    /// `overlay::deliver`: what replies to a VIP's client comes from the VIP.
    fn neighbour(
        &mut self,
        veth: &VethValue,
        endpoint: &EndpointValue,
    ) -> Result<Outcome, DropReason> {
        if endpoint.ifindex == 0 {
            return Err(DropReason::NotLocal);
        }
        let (src, dst) = (self.probe.src_addr(), self.probe.dst_addr());
        let reply = match endpoint.flags & ENDPOINT_HAS_VIP_FLOWS {
            0 => None,
            _ => self.vip_flow(self.vip_flow_key(
                veth.vni,
                dst,
                self.probe.dst_port(),
                src,
                self.probe.src_port(),
            )),
        };
        let mut sent = self.sent(src, dst, endpoint.mac, veth.mac);
        if let Some(flow) = reply {
            let port = self.probe.src_port();
            self.note(Step::Translated {
                addr: flow.vip,
                port,
            });
            sent.src.0 = flow.vip.into();
            sent.dst.1 = flow.client_port(self.probe.dst_port()).to_host();
        }
        Ok(Outcome::Task {
            ifindex: endpoint.ifindex,
            sent,
        })
    }

    fn vip_flow_key(
        &self,
        vni: u32,
        client: Be32,
        client_port: Be16,
        backend: Be32,
        backend_port: Be16,
    ) -> VipFlowKey {
        VipFlowKey {
            vni,
            client,
            backend,
            client_port,
            backend_port,
            proto: self.probe.proto,
            ..VipFlowKey::default()
        }
    }

    /// `vip::outbound`.
    fn outbound(
        &mut self,
        veth: &VethValue,
        ifindex: u32,
        vip: &ServiceValue,
        config: &NodeConfig,
        now: u64,
    ) -> Result<Outcome, DropReason> {
        let client = self.endpoint(veth.vni, veth.addr);
        let client = client.ok_or(DropReason::UnknownInterface)?;
        if client.flags & ENDPOINT_HAS_VIP_FLOWS != 0
            && let Some(client_port) = self.hairpin_reply(veth)
        {
            let ports = (self.probe.src_port(), client_port);
            return Ok(self.hairpin(veth, ifindex, ports));
        }
        let (backend, client_port) = self.backend_of_flow(config, veth, vip, now)?;
        self.note_client_port(client_port);
        if backend.addr == veth.addr {
            let ports = (client_port, self.probe.dst_port());
            return Ok(self.hairpin(veth, ifindex, ports));
        }
        let port = self.probe.dst_port();
        self.note(Step::Translated {
            addr: backend.addr,
            port,
        });
        let mut sent = self.sent(veth.addr, backend.addr, backend.mac, veth.mac);
        sent.src.1 = client_port.to_host();
        if !backend.vtep.is_zero() {
            return Ok(Outcome::Tunnel {
                vtep: backend.vtep.into(),
                vni: veth.vni,
                sent,
            });
        }
        let endpoint = self.endpoint(veth.vni, backend.addr);
        let endpoint = endpoint.ok_or(DropReason::BackendGone)?;
        Ok(Outcome::Task {
            ifindex: endpoint.ifindex,
            sent,
        })
    }

    fn backend_of_flow(
        &mut self,
        config: &NodeConfig,
        veth: &VethValue,
        vip: &ServiceValue,
        now: u64,
    ) -> Result<(BackendValue, Be16), DropReason> {
        let slot = self.slot(vip, config.ring_seed)?;
        let near = match vip.is_near(true) {
            true => self.near_slot(vip, config.ring_seed)?,
            false => slot,
        };
        let choice = self.shared_choice(config, vip, slot);
        let first = match vip.takes_near_flows() {
            true => near.now,
            false => choice,
        };
        let (client, is_established) = (self.probe.client(), self.probe.is_established());
        let first = self.client_index(vip, client, first, is_established, now);
        let backend = self.backend(vip, first)?;
        let (seat, client_port) = self.find_vip_seat(veth, &backend, now);
        let is_active = backend.state == BACKEND_ACTIVE;
        if seat == Seat::Own && !self.probe.is_syn() {
            self.note_backend(&backend);
            self.note(Step::Flow {
                endpoint: backend.endpoint,
                entry: Be32::ZERO,
            });
            return Ok((backend, client_port));
        }
        let others = [choice, slot.before, near.now, near.before, slot.now];
        let others = others.into_iter().filter(|other| *other != first);
        for other in others.filter(|_| self.probe.is_established()) {
            let other = self.backend(vip, other)?;
            let (seat, client_port) = self.find_vip_seat(veth, &other, now);
            if seat == Seat::Own {
                self.note_backend(&other);
                self.note(Step::Flow {
                    endpoint: other.endpoint,
                    entry: Be32::ZERO,
                });
                return Ok((other, client_port));
            }
        }
        self.note_backend(&backend);
        if seat == Seat::Other && !self.probe.is_syn() {
            return Err(DropReason::SourceCollision);
        }
        if !self.probe.is_established() && !is_active {
            return Err(DropReason::NoBackend);
        }
        self.note(Step::Opens {
            endpoint: backend.endpoint,
        });
        Ok((backend, client_port))
    }

    /// `vip::find`: who has the flow's place at a backend, and the port of that.
    fn find_vip_seat(&self, veth: &VethValue, backend: &BackendValue, now: u64) -> (Seat, Be16) {
        let (own, to) = (self.probe.src_port(), self.probe.dst_port());
        let claim = VipClaim {
            vip: self.probe.dst_addr(),
            client_port: own,
        };
        let seat = |port| {
            let key = self.vip_flow_key(veth.vni, veth.addr, port, backend.addr, to);
            let flow = self.vip_flow(key);
            flow.map_or(Seat::Nobody, |flow| claim.seat(&key, &flow, || now))
        };
        let is_established = self.probe.is_established();
        let port = match seat(own) {
            Seat::Own => own,
            Seat::Nobody if !is_established => own,
            Seat::Nobody | Seat::Other => choose_port(own, !is_established, seat),
        };
        (seat(port), port)
    }

    fn note_backend(&mut self, backend: &BackendValue) {
        self.note(Step::Backend {
            endpoint: backend.endpoint,
            vtep: backend.vtep,
            is_active: backend.state == BACKEND_ACTIVE,
        });
    }

    /// The client's own port, if the task answers itself: its reply goes to the VIP, as which it saw
    /// its peer.
    fn hairpin_reply(&self, veth: &VethValue) -> Option<Be16> {
        let (own, ports) = (veth.addr, (self.probe.dst_port(), self.probe.src_port()));
        let flow = self.vip_flow(self.vip_flow_key(veth.vni, own, ports.0, own, ports.1))?;
        let is_reply = flow.vip == self.probe.dst_addr() && flow.flags & VIP_FLOW_HAIRPIN != 0;
        is_reply.then(|| flow.client_port(ports.0))
    }

    fn hairpin(
        &mut self,
        veth: &VethValue,
        ifindex: u32,
        (src_port, dst_port): (Be16, Be16),
    ) -> Outcome {
        self.note(Step::Hairpin);
        let vip = self.probe.dst_addr();
        let mut sent = self.sent(vip, veth.addr, veth.mac, task_mac(vip));
        (sent.src.1, sent.dst.1) = (src_port.to_host(), dst_port.to_host());
        Outcome::Task { ifindex, sent }
    }
}
