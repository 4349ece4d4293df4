//! `sluicectl trace maps`

use std::{io::Write as _, process::ExitCode};

use super::{Format, Node, ledger};

/// Shows what is in the maps of the eBPF programs: pods, addresses, connections that are being made,
/// what may go straight, counters.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    node: Node,
    /// Only these maps, by their names, such as PODS.
    #[arg(value_name = "MAP")]
    maps: Vec<String>,
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let ledger = ledger::read(&arguments.node.run_dir)?;
    let names = ledger::names(&ledger);
    let mut dumps = sluice_kernel::dump(&ledger.expected, &|cookie| names.get(&cookie).cloned())?;
    let wanted = |name: &str| {
        arguments
            .maps
            .iter()
            .any(|map| map.eq_ignore_ascii_case(name))
    };
    if let Some(unknown) = arguments
        .maps
        .iter()
        .find(|map| dumps.iter().all(|dump| !dump.map.eq_ignore_ascii_case(map)))
    {
        let all: Vec<&str> = dumps.iter().map(|dump| &*dump.map).collect();
        anyhow::bail!(
            "there is no map {unknown} to be shown, but {}",
            all.join(", ")
        );
    }
    if !arguments.maps.is_empty() {
        dumps.retain(|dump| wanted(&dump.map));
    }
    let mut out = std::io::stdout().lock();
    if arguments.output == Format::Json {
        serde_json::to_writer_pretty(&mut out, &dumps)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    for dump in dumps {
        let (count, most) = (dump.entries.len(), dump.max_entries);
        writeln!(
            out,
            "{} (id {}, {count} of {most} entries)",
            dump.map, dump.id
        )?;
        let width = dump.entries.iter().map(|entry| entry.key.len()).max();
        for entry in &dump.entries {
            let width = width.unwrap_or_default();
            writeln!(out, "  {:width$}  {}", entry.key, entry.value)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
