//! One YAML or JSON document as a tree, read the way that kubelet's YAML library reads it.
//!
//! Pure, and safe on any bytes: size, nesting, nodes and alias expansion are bounded. Only the first document counts.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};

/// Deepest nesting that is followed; real manifests stay below 20.
const MAX_DEPTH: usize = 96;

/// Most nodes of a document, those that aliases repeat included.
const MAX_NODES: usize = 100_000;

/// Longest error message that is kept, in characters.
const MAX_MESSAGE: usize = 200;

/// A value of a document. Numbers are told apart from text and otherwise dropped: nothing here needs their value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    Null,
    Bool(bool),
    Number,
    Text(String),
    List(Vec<Node>),
    /// In the document's order, merge keys (`<<`) expanded; of equal keys the last one counts.
    Map(Vec<(String, Node)>),
}

/// Why bytes are no document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub message: String,
    /// Both from 1.
    pub line: Option<usize>,
    pub column: Option<usize>,
}

impl Node {
    /// The value of `key`; `Null` when this is no mapping or has no such key.
    pub(crate) fn get(&self, key: &str) -> &Node {
        match self {
            Self::Map(entries) => entries.iter().rev().find(|(k, _)| k == key).map_or(&Node::Null, |(_, v)| v),
            _ => &Node::Null,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn is_true(&self) -> bool {
        matches!(self, Self::Bool(true))
    }

    /// The items of a list; none when this is no list.
    pub(crate) fn items(&self) -> &[Node] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }
}

/// Reads the first document. `Ok(None)` when there is nothing but white space and comments.
pub(crate) fn first_document(bytes: &[u8]) -> Result<Option<Node>, Malformed> {
    let blank = bytes.iter().all(u8::is_ascii_whitespace);
    if blank {
        return Ok(None);
    }
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        // UTF-16 has zeros too, and a byte order mark in front.
        if !matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]) {
            return Err(malformed_at(bytes, at, "a zero byte"));
        }
    } else if let Err(error) = std::str::from_utf8(bytes) {
        return Err(malformed_at(bytes, error.valid_up_to(), "invalid UTF-8"));
    }
    match first_yaml::<Node>(bytes) {
        None => Ok(None),
        Some(Ok(node)) => Ok(Some(node)),
        Some(Err(malformed)) => {
            // Nodes have one of these between them: no more memory than for YAML.
            if bytes.iter().filter(|byte| b",:[{".contains(byte)).count() > MAX_NODES {
                return Err(malformed);
            }
            // kubelet's parser takes JSON that this one refuses, such as JSON indented with tabs.
            serde_json::from_slice::<Node>(bytes).map(Some).map_err(|_| malformed)
        }
    }
}

fn first_yaml<T: DeserializeOwned>(bytes: &[u8]) -> Option<Result<T, Malformed>> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 4 * MAX_NODES,
        },
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
        // Expanded here instead, in the order that kubelet's library has.
        merge_keys: serde_saphyr::options::MergeKeyPolicy::AsOrdinary,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_NODES },
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::PassThrough,
        emit_comments: false,
        with_snippet: false,
    };
    let mut reader = bytes;
    let first = serde_saphyr::read_with_options::<_, T>(&mut reader, options).next()?;
    Some(first.map_err(|error| {
        let location = error.location();
        let number = |n: u64| usize::try_from(n).ok().filter(|n| *n > 0);
        let message = error.without_snippet().to_string();
        // The place is told apart from the message.
        let place = location.map(|l| format!(" at line {}, column {}", l.line(), l.column())).unwrap_or_default();
        let message = message.strip_suffix(&place).unwrap_or(&message);
        Malformed {
            message: message.chars().take(MAX_MESSAGE).collect(),
            line: location.and_then(|l| number(l.line())),
            column: location.and_then(|l| number(l.column())),
        }
    }))
}

fn malformed_at(bytes: &[u8], at: usize, message: &str) -> Malformed {
    let before = &bytes[..at.min(bytes.len())];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
    Malformed { message: message.to_owned(), line: Some(line), column: Some(column) }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Number)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Number)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Number)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Number)
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Text(value))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Node, E> {
        Ok(Node::Text(String::from_utf8_lossy(value).into_owned()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = access.next_entry::<Node, Node>()? {
            match (key, value) {
                (Node::Text(key), value) if key == "<<" => merge(&mut entries, value),
                (Node::Text(key), value) => entries.push((key, value)),
                (Node::Bool(key), value) => entries.push((key.to_string(), value)),
                // No field of ours has a name that is a number or a collection.
                _ => {}
            }
        }
        Ok(Node::Map(entries))
    }
}

/// Merges at the place where `<<` stands, so that it overrides the keys before it: kubelet's library (go-yaml v2) does
/// that, unlike the specification. Of several merged mappings the first one counts.
fn merge(entries: &mut Vec<(String, Node)>, value: Node) {
    match value {
        Node::Map(merged) => entries.extend(merged),
        Node::List(items) => {
            for item in items.into_iter().rev() {
                if let Node::Map(merged) = item {
                    entries.extend(merged);
                }
            }
        }
        _ => {}
    }
}
