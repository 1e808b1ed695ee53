//! Dead letters: events of the broker's own, in the one encoding.
//!
//! Always holds: what is encoded here is as long as an event and what is said of it, which a frame has room for. Pure.
//! Owner: `delivery/groups`.

use super::{Batch, Draft, ID, ID_TO_VM, VM_TO_TOPIC, string_body};
use crate::core::identity::VmName;

impl Batch {
    /// Encodes a dead letter, whose topic is the broker's own; the payload is JSON. It may be as much longer than an
    /// event as what is said of the event in it.
    pub fn push_letter(&mut self, vm: &VmName, topic: &str, id: &str, payload: &[u8]) {
        let (start, out) = (self.bytes.len(), &mut self.bytes);
        out.extend_from_slice(ID);
        string_body(out, id);
        out.extend_from_slice(ID_TO_VM.as_bytes());
        let vm_at = out.len() - start;
        out.extend_from_slice(vm.as_str().as_bytes());
        out.extend_from_slice(VM_TO_TOPIC.as_bytes());
        let topic_at = out.len();
        string_body(out, topic);
        let topic_len = out.len() - topic_at;
        out.extend_from_slice(b"\",\"payload\":");
        out.extend_from_slice(payload);
        out.extend_from_slice(b"}\n");
        self.drafts.push(Draft {
            start: start as u32,
            end: out.len() as u32,
            vm_at: vm_at as u16,
            vm_len: vm.as_str().len() as u8,
            topic_len: topic_len as u16,
            joined: false,
            own_id: true,
            expires: false,
        });
    }
}
