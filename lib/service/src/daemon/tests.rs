use crate::{LogFormat, ServiceArgs};
use std::path::Path;

pub(crate) fn args(dir: &Path) -> ServiceArgs {
    ServiceArgs {
        run_dir: dir.join("run"),
        ring_dir: Some(dir.join("rings")),
        state_dir: dir.join("state"),
        ephemeral: false,
        log_level: "info".to_owned(),
        log_format: LogFormat::Text,
    }
}
