//! `check`: what the build checks find in a Dockerfile; nothing is built.

use std::{path::Path, process::ExitCode};

use idpbuilder::{
    dockerfile::lint,
    exec::{self, Checked, ExecError, Report},
};

use super::{
    Global,
    failure::{BUILD, CliError},
    run, setup,
    sources::{ReadFlags, SourceArgs},
};

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder check\n",
    "  idpbuilder check -f deploy/Dockerfile .\n",
    "  idpbuilder check --strict"
))]
pub(super) struct CheckArgs {
    #[command(flatten)]
    sources: SourceArgs,
}

pub(super) fn check(global: &Global, args: &CheckArgs) -> Result<ExitCode, CliError> {
    perform(global, &args.sources)
}

/// Prints what is found; ends with 1 when there is anything.
pub(super) fn perform(global: &Global, sources: &SourceArgs) -> Result<ExitCode, CliError> {
    let ReadFlags { flags, input: _input } = sources.flags()?;
    let plan = sources.plan(flags)?;
    let store = setup::store()?;
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    let setup = setup::exec_setup(global, store, cancel, &run::RunningArgs::default())?;
    let checked = runtime.block_on(exec::check(&plan, &setup))?;
    let (mut found, mut unsaid) = (0, 0);
    let mut failures = Vec::new();
    for Checked { dockerfile, warnings, advice, failure } in checked {
        let path = Path::new(&dockerfile.name).file_name();
        let name = path.map_or_else(|| dockerfile.name.clone(), |name| name.display().to_string());
        setup::print(&lint::listing(&warnings, &name, &dockerfile.text));
        found += warnings.len();
        if sources.strict {
            setup::print(&lint::listing(&advice, &name, &dockerfile.text));
            found += advice.len();
        } else {
            unsaid += advice.len();
        }
        failures.extend(failure.map(ExecError::Build));
    }
    if !failures.is_empty() {
        CliError::Run(Report { images: Vec::new(), failures }).print();
        return Ok(ExitCode::from(BUILD));
    }
    if !run::is_silent(global) {
        setup::tell(&match found {
            0 => "check complete, no warnings found".to_owned(),
            1 => "\ncheck complete, 1 warning found".to_owned(),
            count => format!("\ncheck complete, {count} warnings found"),
        });
        if unsaid > 0 {
            setup::tell(&format!(
                "{unsaid} more by rules of idpbuilder itself: --strict shows them"
            ));
        }
    }
    Ok(ExitCode::from(if found == 0 { 0 } else { BUILD }))
}
