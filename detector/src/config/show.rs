//! Writing it: every key with its value, and what it is for.

use serde_json::Value;

use super::Config;

/// Widest line of a comment.
const WIDTH: usize = 110;

/// The JSON Schema of the configuration.
#[must_use]
pub fn schema() -> Value {
    schemars::schema_for!(Config).to_value()
}

/// The configuration as YAML. What a key is for stands above it, taken from the schema.
///
/// # Errors
/// When a path is no UTF-8.
pub fn render(config: &Config) -> anyhow::Result<String> {
    let schema = schema();
    let mut out = String::new();
    comment(&mut out, "", schema.get("description"));
    let mut above: Vec<&str> = Vec::new();
    let yaml = serde_saphyr::to_string(config)?;
    for line in yaml.lines() {
        let indent = line.len() - line.trim_start().len();
        // Two levels of keys; what is deeper belongs to lists.
        if let Some((key, _)) = line.trim_start().split_once(':')
            && indent.is_multiple_of(2)
            && indent / 2 <= above.len().min(1)
            && !key.starts_with(['-', '"', '\''])
        {
            above.truncate(indent / 2);
            above.push(key);
            if let Some(of) = property(&schema, &above) {
                if indent == 0 {
                    out.push('\n');
                }
                comment(&mut out, &line[..indent], of.get("description"));
            }
        }
        out.push_str(line);
        out.push('\n');
    }
    Ok(out)
}

/// The schema of a key.
fn property<'a>(schema: &'a Value, keys: &[&str]) -> Option<&'a Value> {
    keys.iter().try_fold(schema, |of, key| {
        let of = match of.get("$ref").and_then(Value::as_str) {
            Some(reference) => schema.pointer(reference.strip_prefix('#')?)?,
            None => of,
        };
        of.get("properties")?.get(*key)
    })
}

fn comment(out: &mut String, indent: &str, description: Option<&Value>) {
    let mut line = String::new();
    let mut end = |line: &mut String| {
        if !line.is_empty() {
            out.push_str(&format!("{indent}# {line}\n"));
            line.clear();
        }
    };
    for text in description.and_then(Value::as_str).unwrap_or_default().lines() {
        // An example stays as it is.
        if text.starts_with("    ") {
            end(&mut line);
            let mut whole = text.to_owned();
            end(&mut whole);
            continue;
        }
        for word in text.split_whitespace() {
            if line.len() + word.len() >= WIDTH {
                end(&mut line);
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    end(&mut line);
}
