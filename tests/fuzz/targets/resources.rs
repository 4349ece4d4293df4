//! What a control plane may send: it becomes the model's or is refused, and what is accepted is the
//! same after a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use sluice_model::{Service, Workload, authz::Policy};
use sluice_proto::{security, workload as wire};

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    match kind % 3 {
        0 => {
            if let Ok(Ok(one)) = wire::Workload::decode(bytes).map(Workload::try_from) {
                let again = Workload::try_from(wire::Workload::from(&one));
                assert_eq!(again.expect("taken before"), one);
            }
        }
        1 => {
            if let Ok(Ok(one)) = wire::Service::decode(bytes).map(Service::try_from) {
                let again = Service::try_from(wire::Service::from(&one));
                assert_eq!(again.expect("taken before"), one);
            }
        }
        _ => {
            if let Ok(Ok(one)) = security::Authorization::decode(bytes).map(Policy::try_from) {
                let again = Policy::try_from(security::Authorization::from(&one));
                assert_eq!(again.expect("taken before"), one);
            }
        }
    }
});
