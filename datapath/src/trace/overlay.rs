//! From a task into an overlay network: straight to an endpoint, or through a VIP packet by packet.

use dataplane_abi::{
    BACKEND_ACTIVE, BackendValue, Be16, Be32, DropReason, ENDPOINT_HAS_VIP_FLOWS, EndpointValue,
    ServiceValue, VIP_FLOW_HAIRPIN, VethValue, VipFlowKey, net::task_mac,
};

use super::{Lookup, Outcome, Sent, Step, Trail};

impl<L: Lookup> Trail<'_, L> {
    pub(super) fn task(&mut self, ifindex: u32) -> Result<Outcome, DropReason> {
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
            return self.outbound(&veth, ifindex, &vip, config.ring_seed);
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
        let src = match reply {
            Some(flow) => {
                let port = self.probe.src_port();
                self.note(Step::Translated {
                    addr: flow.vip,
                    port,
                });
                flow.vip
            }
            None => src,
        };
        Ok(Outcome::Task {
            ifindex: endpoint.ifindex,
            sent: self.sent(src, dst, endpoint.mac, veth.mac),
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
        seed: u64,
    ) -> Result<Outcome, DropReason> {
        let client = self.endpoint(veth.vni, veth.addr);
        let client = client.ok_or(DropReason::UnknownInterface)?;
        if client.flags & ENDPOINT_HAS_VIP_FLOWS != 0 && self.is_hairpin_reply(veth) {
            return Ok(self.hairpin(veth, ifindex));
        }
        let slot = self.slot(vip, seed)?;
        let backend = self.backend_of_flow(veth, vip, slot.now, slot.before)?;
        if backend.addr == veth.addr {
            return Ok(self.hairpin(veth, ifindex));
        }
        let port = self.probe.dst_port();
        self.note(Step::Translated {
            addr: backend.addr,
            port,
        });
        let sent = self.sent(veth.addr, backend.addr, backend.mac, veth.mac);
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
        veth: &VethValue,
        vip: &ServiceValue,
        now: u16,
        before: u16,
    ) -> Result<BackendValue, DropReason> {
        let backend = self.backend(vip, now)?;
        let key = |backend: &BackendValue| {
            let (client, ports) = (veth.addr, (self.probe.src_port(), self.probe.dst_port()));
            self.vip_flow_key(veth.vni, client, ports.0, backend.addr, ports.1)
        };
        let dst = self.probe.dst_addr();
        let known = |backend: &BackendValue| {
            let flow = self.vip_flow(key(backend));
            flow.is_some_and(|flow| flow.vip == dst)
        };
        let is_taken = self.vip_flow(key(&backend)).is_some();
        let is_active = backend.state == BACKEND_ACTIVE;
        if known(&backend) && !self.probe.is_syn() {
            self.note_backend(&backend);
            self.note(Step::Flow {
                endpoint: backend.endpoint,
                entry: Be32::ZERO,
            });
            return Ok(backend);
        }
        if self.probe.is_established() && before != now {
            let before = self.backend(vip, before)?;
            if known(&before) {
                self.note_backend(&before);
                self.note(Step::Flow {
                    endpoint: before.endpoint,
                    entry: Be32::ZERO,
                });
                return Ok(before);
            }
        }
        self.note_backend(&backend);
        if is_taken && self.probe.is_established() {
            return Err(DropReason::SourceCollision);
        }
        if !self.probe.is_established() && !is_active {
            return Err(DropReason::NoBackend);
        }
        self.note(Step::Opens {
            endpoint: backend.endpoint,
        });
        Ok(backend)
    }

    fn note_backend(&mut self, backend: &BackendValue) {
        self.note(Step::Backend {
            endpoint: backend.endpoint,
            vtep: backend.vtep,
            is_active: backend.state == BACKEND_ACTIVE,
        });
    }

    /// Whether the task answers itself: its reply goes to the VIP, as which it saw its peer.
    fn is_hairpin_reply(&self, veth: &VethValue) -> bool {
        let (own, ports) = (veth.addr, (self.probe.dst_port(), self.probe.src_port()));
        let flow = self.vip_flow(self.vip_flow_key(veth.vni, own, ports.0, own, ports.1));
        flow.is_some_and(|flow| {
            flow.vip == self.probe.dst_addr() && flow.flags & VIP_FLOW_HAIRPIN != 0
        })
    }

    fn hairpin(&mut self, veth: &VethValue, ifindex: u32) -> Outcome {
        self.note(Step::Hairpin);
        let vip = self.probe.dst_addr();
        Outcome::Task {
            ifindex,
            sent: self.sent(vip, veth.addr, veth.mac, task_mac(vip)),
        }
    }
}
