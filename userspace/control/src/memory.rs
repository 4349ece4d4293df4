//! The policies in force, kept in the state directory across restarts; why is told at
//! [`Policy::stand_in`](sluice_model::authz::Policy::stand_in).

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use sluice_objects::{Diagnostic, LastGood, Memory};

use crate::{Error, state};

const FILE: &str = "last-good.json";

/// Keeps the file in step with the policies in force.
#[derive(Debug)]
pub struct Keeper {
    directory: PathBuf,
    /// What the file holds; absent when that is nothing of use.
    saved: Option<Arc<LastGood>>,
    /// Why what was kept is lost.
    lost: Option<Diagnostic>,
}

impl Keeper {
    /// Reads what was kept. What cannot be used is reported, and counts as nothing.
    ///
    /// # Errors
    /// When there can be no such directory.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
        let mut keeper = Self {
            directory: directory.to_owned(),
            saved: None,
            lost: None,
        };
        let read = state::read(&directory.join(FILE)).map_err(|error| error.to_string());
        let parsed = read.and_then(|text| {
            let parsed = text.map(|text| serde_json::from_str(&text)).transpose();
            parsed.map_err(|error| error.to_string())
        });
        match parsed {
            Ok(last_good) => keeper.saved = last_good.map(Arc::new),
            Err(why) => {
                let message = format!(
                    "cannot be used ({why}), so this is as a first start: nothing is allowed \
                     where a policy cannot be read"
                );
                keeper.lost = Some(keeper.diagnostic(message));
            }
        }
        Ok(keeper)
    }

    /// What a reader of objects shall begin with.
    pub fn memory(&self) -> Memory {
        match &self.saved {
            Some(last_good) => Memory::Kept((**last_good).clone()),
            None => Memory::Blank,
        }
    }

    /// Writes down what is in force, if it is not written yet. Returns what is wrong.
    pub fn keep(&mut self, last_good: &Arc<LastGood>) -> Vec<Diagnostic> {
        let mut wrong: Vec<Diagnostic> = self.lost.iter().cloned().collect();
        if self.saved.as_ref() == Some(last_good) {
            return wrong;
        }
        match self.write(last_good) {
            Ok(()) => self.saved = Some(last_good.clone()),
            Err(error) => wrong.push(self.diagnostic(format!(
                "cannot be written ({error}): policies that are broken at the next start will be in \
                 force as this file has them, not as they are now"
            ))),
        }
        wrong
    }

    fn write(&self, last_good: &LastGood) -> std::io::Result<()> {
        let mut text = serde_json::to_string_pretty(last_good)?;
        text.push('\n');
        state::write(&self.directory, FILE, 0o600, &text)
    }

    fn diagnostic(&self, message: String) -> Diagnostic {
        state::problem(&self.directory.join(FILE), message)
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
