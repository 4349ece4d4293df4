//! `ADDRESS --option VALUE …`

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;

pub(crate) struct Arguments {
    pub(crate) address: SocketAddr,
    options: HashMap<String, String>,
}

impl Arguments {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> io::Result<Self> {
        let address = words
            .next()
            .ok_or_else(|| io::Error::other("no ADDRESS given"))?;
        let address = address
            .parse()
            .map_err(|_| io::Error::other(format!("{address} is not of the form IP:PORT")))?;
        let mut options = HashMap::new();
        while let Some(word) = words.next() {
            let name = word
                .strip_prefix("--")
                .ok_or_else(|| io::Error::other(format!("{word}: expected --option")))?;
            let value = words
                .next()
                .ok_or_else(|| io::Error::other(format!("--{name}: no value")))?;
            options.insert(name.to_owned(), value);
        }
        Ok(Self { address, options })
    }

    pub(crate) fn option<T: FromStr>(&self, name: &str) -> io::Result<Option<T>> {
        self.options
            .get(name)
            .map(|value| {
                value
                    .parse()
                    .map_err(|_| io::Error::other(format!("--{name}: cannot read {value}")))
            })
            .transpose()
    }
}
