//! `plan`: the steps of a run, before anything runs.

use std::process::ExitCode;

use idpbuilder::{exec, report};

use super::{
    Global,
    failure::CliError,
    project::{self, ProjectArgs, SelectionArgs},
    run, setup,
};

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder plan\n",
    "  idpbuilder plan release --format json"
))]
pub(super) struct PlanArgs {
    #[command(flatten)]
    project: ProjectArgs,
    #[command(flatten)]
    selection: SelectionArgs,
    /// Form of the plan.
    #[arg(long, value_enum, default_value_t = Form::Table)]
    format: Form,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Form {
    /// One line a step.
    Table,
    /// Everything.
    Json,
}

pub(super) fn plan(global: &Global, args: &PlanArgs) -> Result<ExitCode, CliError> {
    let loaded = project::load(&args.project)?;
    let plan = project::plan(&loaded, &args.selection)?;
    exec::check_files(&plan)?;
    let text = match args.format {
        Form::Table => report::plan_table(&plan),
        Form::Json => {
            let json = serde_json::to_string_pretty(&plan).expect("plans hold only JSON values");
            format!("{json}\n")
        }
    };
    for warning in &plan.warnings {
        run::notice(global, warning);
    }
    setup::print(&text);
    Ok(ExitCode::SUCCESS)
}
