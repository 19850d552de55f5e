//! CEL expressions over an alert. Checked when they are read, so that one that can never hold is an error and not a silence that
//! never comes; bounded in length and nesting, and without loops within loops, so that no alert takes long.

use std::sync::{Arc, LazyLock};

use cel::{
    Context, Env, Program, Value,
    common::ast::{EntryExpr, Expr},
};
use serde_json::Value as Json;

use crate::{
    alert::{Alert, Ancestor, Container, Evidence, File, Origin, Pod, Process, Request, Severity, TraceRef},
    detect::technique::STATIC_POD,
    escape::escape_to,
    manifest::Manifest,
};

/// Longest expression, in bytes.
const LENGTH_MAX: usize = 1024;
/// How deep brackets may be nested. The parser takes up to 70 KiB of stack for each, before it looks at its own bound.
const BRACKETS_MAX: usize = 8;
/// How deep what was parsed may be: evaluating takes up to 40 KiB of stack for each step.
const DEPTH_MAX: usize = 24;
/// What an alert is called.
const ALERT: &str = "alert";
/// Functions beside operators.
const FUNCTIONS: [&str; 10] =
    ["contains", "endsWith", "matches", "size", "startsWith", "string", "int", "uint", "double", "type"];

static STANDARD: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// An expression that may be evaluated.
///
/// # Errors
/// When it is none, in words.
pub fn compile(text: &str) -> Result<Program, String> {
    if text.len() > LENGTH_MAX {
        return Err(format!("an expression of {} bytes; expected at most {LENGTH_MAX}", text.len()));
    }
    let nested = text.bytes().scan(0_usize, |depth, byte| {
        match byte {
            b'(' | b'[' | b'{' => *depth += 1,
            b')' | b']' | b'}' => *depth = depth.saturating_sub(1),
            _ => {}
        }
        Some(*depth)
    });
    if nested.max().unwrap_or_default() > BRACKETS_MAX {
        return Err(format!("brackets within brackets; expected at most {BRACKETS_MAX} deep"));
    }
    let program = STANDARD.compile(text).map_err(|errors| match errors.errors.first() {
        Some(error) => {
            let what = error.msg.strip_prefix("Syntax error: ").unwrap_or(&error.msg);
            format!("no CEL expression: {} at its line {}, column {}", escape_to(what, 200), error.pos.0, error.pos.1)
        }
        None => "no CEL expression".to_owned(),
    })?;
    let sample = serde_json::to_value(every_field()).map_err(|error| error.to_string())?;
    let mut check = Check { sample: &sample, bound: Vec::new(), loops: 0, depth: 0 };
    check.expression(&program.expression().expr)?;
    match program.execute(&context(&every_field())) {
        Ok(Value::Bool(_)) | Err(_) => Ok(program),
        Ok(other) => Err(format!("an expression whose value is of type {}; expected true or false", other.type_of())),
    }
}

/// An alert as expressions see it. Making it takes longer than most expressions: one for all of them.
#[must_use]
pub fn context(alert: &Alert) -> Context<'static, 'static> {
    let mut context = Context::with_env(Arc::clone(&STANDARD));
    context.add_variable_from_value(ALERT, cel::to_value(alert).unwrap_or(Value::Null));
    context
}

/// Whether the expression is true. One that fails, because the alert has no pod, say, is not.
#[must_use]
pub fn holds(program: &Program, alert: &Context<'_, '_>) -> bool {
    matches!(program.execute(alert), Ok(Value::Bool(true)))
}

struct Check<'a> {
    sample: &'a Json,
    /// Variables of the loops around.
    bound: Vec<String>,
    loops: usize,
    depth: usize,
}

impl Check<'_> {
    fn expression(&mut self, expression: &Expr) -> Result<(), String> {
        if self.depth > DEPTH_MAX {
            return Err(format!("too long a chain of steps; expected at most {DEPTH_MAX} within one another"));
        }
        self.depth += 1;
        self.part(expression)?;
        self.depth -= 1;
        Ok(())
    }

    fn part(&mut self, expression: &Expr) -> Result<(), String> {
        match expression {
            Expr::Unspecified | Expr::Literal(_) => Ok(()),
            Expr::Ident(name) if name == ALERT || self.bound.contains(name) => Ok(()),
            Expr::Ident(name) => Err(format!("nothing is called {}; expected {ALERT}.FIELD", quoted(name))),
            Expr::Select(select) => {
                self.expression(&select.operand.expr)?;
                self.field(&select.operand.expr, &select.field)
            }
            Expr::Call(call) => {
                let operator = !call.func_name.starts_with(|c: char| c.is_ascii_alphabetic());
                if !operator && !FUNCTIONS.contains(&call.func_name.as_str()) {
                    let near = crate::nearest::near(&call.func_name, FUNCTIONS);
                    return Err(format!("there is no function {}{near}", quoted(&call.func_name)));
                }
                call.target
                    .iter()
                    .map(|target| &**target)
                    .chain(&call.args)
                    .try_for_each(|part| self.expression(&part.expr))
            }
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.expression(&element.expr)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.expression(&entry.key.expr)?;
                    self.expression(&entry.value.expr)
                }
                EntryExpr::StructField(field) => self.expression(&field.value.expr),
            }),
            Expr::Struct(of) => Err(format!("there is no type {}", quoted(&of.type_name))),
            Expr::Comprehension(of) => {
                self.expression(&of.iter_range.expr)?;
                if self.loops > 0 {
                    return Err(
                        "a loop within a loop; expected exists, all, map and filter beside one another".to_owned()
                    );
                }
                self.loops += 1;
                let outer = self.bound.len();
                self.bound.extend([of.iter_var.clone(), of.accu_var.clone()].into_iter().chain(of.iter_var2.clone()));
                let parts = [&of.accu_init, &of.loop_cond, &of.loop_step, &of.result];
                parts.into_iter().try_for_each(|part| self.expression(&part.expr))?;
                self.bound.truncate(outer);
                self.loops -= 1;
                Ok(())
            }
        }
    }

    /// Whether an alert has such a field. What lists hold is not looked into.
    fn field(&self, of: &Expr, field: &str) -> Result<(), String> {
        let Some(Json::Object(fields)) = self.lookup(of) else { return Ok(()) };
        if fields.contains_key(field) {
            return Ok(());
        }
        let near = crate::nearest::near(field, fields.keys().map(String::as_str));
        Err(format!("an alert has no {}{near}", quoted(&format!("{}.{field}", path(of)))))
    }

    fn lookup(&self, expression: &Expr) -> Option<&Json> {
        match expression {
            Expr::Ident(name) if name == ALERT => Some(self.sample),
            Expr::Select(select) => self.lookup(&select.operand.expr)?.get(&select.field),
            _ => None,
        }
    }
}

fn path(expression: &Expr) -> String {
    match expression {
        Expr::Ident(name) => name.clone(),
        Expr::Select(select) => format!("{}.{}", path(&select.operand.expr), select.field),
        _ => String::new(),
    }
}

fn quoted(text: &str) -> String {
    format!("`{}`", escape_to(text, 80))
}

/// An alert that has everything that an alert may have.
fn every_field() -> Alert {
    let text = || "text".to_owned();
    let some = || Some(text());
    Alert {
        time: text(),
        node: text(),
        severity: Severity::Info,
        technique: STATIC_POD.clone(),
        title: text(),
        blocked: false,
        reasons: vec![text()],
        origin: Origin::Container,
        process: Some(Process {
            pid: 1,
            start_time: some(),
            exe: text(),
            sha256: some(),
            argv: vec![text()],
            argv_truncated: false,
            uid: 1,
            login_uid: Some(1),
            tty: some(),
            cgroup: some(),
            ancestors: vec![Ancestor { pid: 1, exe: text() }],
        }),
        container: Some(Container { id: text(), name: some(), image: some(), image_digest: some() }),
        pod: Some(Pod { namespace: text(), name: text(), uid: text() }),
        file: Some(File {
            path: text(),
            sha256: some(),
            size: Some(1),
            change: "added",
            previous_sha256: some(),
            symlink: some(),
        }),
        manifest: Some(Manifest::default()),
        request: Some(Request {
            user: text(),
            groups: vec![text()],
            impersonated_user: some(),
            source_ips: vec![text()],
            user_agent: text(),
            verb: text(),
            uri: text(),
            resource: some(),
            namespace: some(),
            name: some(),
            code: 200,
            audit_id: text(),
            time: text(),
            pod: some(),
        }),
        evidence: vec![Evidence { kind: "open", hook: Some("open"), sequence: 1, detail: text() }],
        trace: TraceRef { sequence: 1 },
        count: 1,
        first_time: some(),
        last_time: some(),
    }
}
