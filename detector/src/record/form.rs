//! How bytes, and values that may be absent in two ways, are written as text: JSON has neither.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes as lower-case hexadecimal digits.
pub mod hex {
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// # Errors
    /// When the serializer fails.
    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::digits(bytes))
    }

    /// # Errors
    /// When it is no text of hexadecimal digits.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse(&text).map(Bytes::from).ok_or_else(|| D::Error::custom("not an even number of hexadecimal digits"))
    }
}

/// Bytes as the text that they are; where they are none, as `{"hex": "..."}`.
pub mod text {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        Hex {
            #[serde(with = "super::hex")]
            hex: Bytes,
        },
    }

    /// # Errors
    /// When the serializer fails.
    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Form::Hex { hex: bytes.clone() }.serialize(serializer),
        }
    }

    /// # Errors
    /// When it is neither of the two forms.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        Ok(match Form::deserialize(deserializer)? {
            Form::Text(text) => text.into(),
            Form::Hex { hex } => hex,
        })
    }
}

/// A field that is left out when there is none, so that what it may hold can be none too.
///
/// # Errors
/// When the value cannot be read.
pub fn there<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// The other direction of [`there`]; [`Option::is_none`] skips the field.
///
/// # Errors
/// When the serializer fails.
#[expect(clippy::ref_option, reason = "serde's signature")]
pub fn write_there<S: Serializer, T: Serialize>(value: &Option<Option<T>>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_ref().and_then(Option::as_ref).serialize(serializer)
}

/// Lower-case hexadecimal digits.
pub fn digits(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| DIGITS[usize::from(digit)]).collect()
}

fn parse(text: &str) -> Option<Vec<u8>> {
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(value(*high)? << 4 | value(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use crate::{
        record::{Body, BootNs, ChangeKind, PauseConfig, Record},
        testing::{self, Noise},
    };

    fn through_json(body: Body) -> (String, Body) {
        let text = serde_json::to_string(&body).unwrap();
        let back = serde_json::from_str(&text).unwrap();
        (text, back)
    }

    #[test]
    fn a_kernel_record_is_digits_and_comes_back() {
        let mut noise = Noise(3);
        for len in 0..300 {
            let raw: Bytes = (0..len).map(|_| noise.next().to_le_bytes()[0]).collect();
            let body = Body::Kernel { raw };
            let (text, back) = through_json(body.clone());
            assert_eq!(back, body, "{text}");
        }
        assert_eq!(
            through_json(Body::Kernel { raw: Bytes::from_static(b"\x00\xfe") }).0,
            r#"{"kind":"kernel","raw":"00fe"}"#
        );
        assert!(serde_json::from_str::<Body>(r#"{"kind":"kernel","raw":"0"}"#).is_err());
        assert!(serde_json::from_str::<Body>(r#"{"kind":"kernel","raw":"+f"}"#).is_err());
    }

    #[test]
    fn a_manifest_is_text_where_it_is_text_and_digits_where_not() {
        for (content, written) in
            [(&b"kind: Pod\n\"\0"[..], r#""content":"kind: Pod\n\"\u0000""#), (b"a\xff", r#""content":{"hex":"61ff"}"#)]
        {
            let mut change = testing::manifest(ChangeKind::Added, Some("x"), BootNs(1));
            change.after.as_mut().unwrap().content = Bytes::copy_from_slice(content);
            let body = Body::Manifest(Box::new(change));
            let (text, back) = through_json(body.clone());
            assert!(text.contains(written), "{text}");
            assert_eq!(back, body);
        }
    }

    #[test]
    fn seen_for_the_first_time_is_not_the_same_as_none_before() {
        for before in [None, Some(None), Some(Some("pause:3.9".to_owned()))] {
            let body = Body::PauseConfig(Box::new(PauseConfig { before, ..PauseConfig::default() }));
            assert_eq!(through_json(body.clone()).1, body);
            let record = Record { seq: 1, time: BootNs(2), body };
            assert_eq!(serde_json::from_value::<Record>(serde_json::to_value(&record).unwrap()).unwrap(), record);
        }
    }
}
