//! Addresses for the hosts of ServiceEntries that have none, so that DNS has an answer for them and
//! connections are known to be to them.
//!
//! A host keeps its address for as long as it is there, over restarts too: clients hold on to what
//! DNS has told them.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use serde::Serialize;
use sluice_model::{Name, NetworkAddress, Service};
use sluice_objects::Diagnostic;

use crate::{Error, state, translate::Translation};

const FILE: &str = "addresses.json";
/// 240.240.0.0/16 and 2001:2::/48, which nobody routes; Istio gives addresses from the same.
const BASE: u32 = u32::from_be_bytes([240, 240, 0, 0]);
const BASE_V6: u128 = 0x2001_0002_0000_0000_0000_0000_f0f0_0000;
/// Places are 1 to this; the first and the last address look like those of a network.
const PLACES: u16 = u16::MAX - 1;

/// Gives addresses, and remembers them in the state directory.
#[derive(Debug)]
pub struct Addresses {
    directory: PathBuf,
    /// What each service, `NAMESPACE/HOSTNAME`, has.
    given: BTreeMap<String, Place>,
    /// Whether the file says the same.
    saved: bool,
    lost: Option<Diagnostic>,
}

/// What has been given to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Given {
    /// `NAMESPACE/HOSTNAME`
    pub service: String,
    pub addresses: [IpAddr; 2],
}

/// Stands for an address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Place(u16);

impl Addresses {
    /// Reads what was given before. What cannot be used is reported, and counts as nothing.
    ///
    /// # Errors
    /// When there can be no such directory.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
        let path = directory.join(FILE);
        let mut own = Self {
            directory: directory.to_owned(),
            given: BTreeMap::new(),
            saved: true,
            lost: None,
        };
        match read(&path) {
            Ok(given) => own.given = given,
            Err(why) => {
                let message = format!(
                    "cannot be used ({why}): hosts without addresses are given new ones, and \
                     connections to old ones fail"
                );
                own.lost = Some(state::problem(&path, message));
            }
        }
        Ok(own)
    }

    /// Gives an address of each family to every service that shall have one. Returns what is wrong.
    pub fn give(&mut self, translation: &mut Translation, network: &Name) -> Vec<Diagnostic> {
        let mut problems: Vec<Diagnostic> = self.lost.iter().cloned().collect();
        let taken = taken(translation);
        let mut wanting: BTreeMap<String, &mut Service> = BTreeMap::new();
        for service in &mut translation.services {
            if translation.unaddressed.contains(&service.key()) {
                wanting.insert(service.key().to_string(), service);
            }
        }
        let before = self.given.clone();
        self.given
            .retain(|key, place| wanting.contains_key(key) && !taken.contains(place));
        let mut used: HashSet<Place> = taken;
        used.extend(self.given.values());
        for (key, service) in wanting {
            let place = match self.given.get(&key) {
                Some(place) => *place,
                None => {
                    let Some(place) = Place::free(&key, &used) else {
                        let message = format!("no address is left for {key}");
                        problems.push(state::problem(&self.path(), message));
                        continue;
                    };
                    used.insert(place);
                    self.given.insert(key, place);
                    place
                }
            };
            let addresses = place
                .addresses()
                .map(|ip| NetworkAddress::new(network.clone(), ip));
            service.vips = addresses.into();
        }
        self.saved &= self.given == before;
        if !self.saved {
            match self.write() {
                Ok(()) => self.saved = true,
                Err(error) => problems.push(state::problem(
                    &self.path(),
                    format!(
                        "cannot be written ({error}): after a restart, hosts may be given others"
                    ),
                )),
            }
        }
        problems
    }

    /// Everything that is given.
    pub fn given(&self) -> Vec<Given> {
        let all = self.given.iter();
        all.map(|(service, place)| Given {
            service: service.clone(),
            addresses: place.addresses(),
        })
        .collect()
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    fn write(&self) -> std::io::Result<()> {
        let given = self.given.iter();
        let given: BTreeMap<&String, IpAddr> = given
            .map(|(key, place)| (key, place.addresses()[0]))
            .collect();
        let mut text = serde_json::to_string_pretty(&given)?;
        text.push('\n');
        state::write(&self.directory, FILE, 0o600, &text)
    }
}

fn read(path: &Path) -> Result<BTreeMap<String, Place>, String> {
    let text = state::read(path).map_err(|error| error.to_string())?;
    let Some(text) = text else {
        return Ok(BTreeMap::new());
    };
    let given: BTreeMap<String, Ipv4Addr> =
        serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let mut used = HashSet::new();
    given
        .into_iter()
        .map(|(key, ip)| {
            let place = Place::of(ip.into()).filter(|place| used.insert(*place));
            let place = place.ok_or_else(|| format!("{ip} cannot be the address of {key}"))?;
            Ok((key, place))
        })
        .collect()
}

/// Places that objects name themselves.
fn taken(translation: &Translation) -> HashSet<Place> {
    let services = translation.services.iter();
    let vips = services.flat_map(|service| &service.vips).map(|vip| vip.ip);
    let workloads = translation.workloads.iter();
    let ips = workloads.flat_map(|workload| &workload.ips).copied();
    vips.chain(ips).filter_map(Place::of).collect()
}

impl Place {
    /// The first that is free, from where the name alone leads: so most services have the same
    /// address wherever it is given, and in whichever order they came.
    fn free(key: &str, used: &HashSet<Self>) -> Option<Self> {
        let hash = crc32fast::hash(key.as_bytes()) % u32::from(PLACES);
        let start = u16::try_from(hash).unwrap_or(0);
        let mut all = (start..PLACES).chain(0..start).map(|place| Self(place + 1));
        all.find(|place| !used.contains(place))
    }

    fn of(ip: IpAddr) -> Option<Self> {
        let place: u16 = match ip {
            IpAddr::V4(ip) => u32::from(ip).checked_sub(BASE)?.try_into().ok()?,
            IpAddr::V6(ip) => u128::from(ip).checked_sub(BASE_V6)?.try_into().ok()?,
        };
        (1..=PLACES).contains(&place).then_some(Self(place))
    }

    fn addresses(self) -> [IpAddr; 2] {
        [
            Ipv4Addr::from(BASE + u32::from(self.0)).into(),
            Ipv6Addr::from(BASE_V6 + u128::from(self.0)).into(),
        ]
    }
}

#[cfg(test)]
#[path = "addresses_tests.rs"]
mod tests;
