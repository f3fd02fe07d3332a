//! What is wrong with a spec, and the checks that both daemons make.

/// Why a spec cannot be used. The field is the one of the spec's message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct SpecError {
    /// Name of the field, for instance `edits.filter`.
    pub field: &'static str,
    /// What is wrong and what would do.
    pub problem: String,
}

impl SpecError {
    pub(crate) fn new(field: &'static str, problem: impl ToString) -> SpecError {
        SpecError {
            field,
            problem: problem.to_string(),
        }
    }
}

/// Checks the names of interfaces: 1 to `most`, each once, each one that an interface can have (`dev_valid_name` in
/// `net/core/dev.c`; alternative names have up to 127 characters).
///
/// # Errors
/// The first that will not do.
pub fn validate_interfaces<'a>(
    names: impl IntoIterator<Item = &'a str>,
    most: usize,
) -> Result<(), SpecError> {
    let names: Vec<&str> = names.into_iter().collect();
    let refuse = |problem| Err(SpecError::new("interfaces", problem));
    if names.is_empty() || names.len() > most {
        return refuse(format!("name 1 to {most} interfaces"));
    }
    for (index, name) in names.iter().enumerate() {
        let legal = !name.is_empty()
            && name.len() < 128
            && !name.contains(['/', ':', '\0'])
            && !name.contains(char::is_whitespace)
            && ![".", ".."].contains(name);
        if !legal {
            return refuse(format!("\"{}\" is no interface name", name.escape_debug()));
        }
        if names[..index].contains(name) {
            return refuse(format!("{name} is named twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(names: &[&str]) -> String {
        validate_interfaces(names.iter().copied(), 2)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn interfaces_are_few_legal_and_different() {
        assert_eq!(problem(&["eth1", "wlp3s0.100"]), "");
        assert_eq!(problem(&[]), "interfaces: name 1 to 2 interfaces");
        assert_eq!(
            problem(&["a", "b", "c"]),
            "interfaces: name 1 to 2 interfaces"
        );
        assert_eq!(problem(&["a", "a"]), "interfaces: a is named twice");
        for name in ["", ".", "..", "a/b", "a b", "a:b", "a\nb", &"x".repeat(128)] {
            assert!(problem(&[name]).contains("is no interface name"), "{name}");
        }
    }
}
