//! What was probably meant.

/// `. Did you mean ...?` when one of the names is near enough, else what there is.
pub fn near<'a>(text: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().collect();
    let lower = text.to_lowercase();
    // The matrix behind a distance is as large as the texts.
    let short = lower.len() <= 64;
    let nearest = names
        .iter()
        .filter(|_| short)
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), *name))
        .min();
    match nearest {
        Some((distance, name)) if distance <= 1 + name.len() / 4 => format!("; did you mean {name}?"),
        _ => format!("; expected one of {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_guessed_and_something_else_is_not() {
        assert_eq!(near("manifest_dir", ["hooks", "manifest_dirs"]), "; did you mean manifest_dirs?");
        assert_eq!(near("Hoosk", ["hooks", "manifest_dirs"]), "; did you mean hooks?");
        assert_eq!(near("frobnicate", ["hooks", "deny"]), "; expected one of hooks, deny");
    }
}
