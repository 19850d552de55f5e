//! Rows as Apache Parquet: row groups of bounded size, zstd, every column optional.

use std::{collections::HashMap, io::Write, sync::Arc};

use bytes::Bytes;
use parquet::{
    basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical, ZstdLevel},
    data_type::{BoolType, ByteArray, ByteArrayType, Int32Type, Int64Type},
    file::{
        properties::{EnabledStatistics, WriterProperties},
        writer::{SerializedColumnWriter, SerializedFileWriter},
    },
    schema::types::Type,
};

use crate::export::{
    ExportError, Exporter, Seen,
    rows::{COLUMNS, Cell, Column, Kind, Row},
};

/// Most rows of a row group: engines read groups in parallel, and skip those whose times do not fit.
const ROWS: usize = 128 * 1024;
/// Most bytes of texts that a row group keeps, each different one counted once a column.
const TEXTS: usize = 32 * 1024 * 1024;
/// What it takes to keep a text, beside its bytes.
const ENTRY: usize = 128;
/// How many texts are handed to the encoder at once.
const BATCH: usize = 1024;

/// Parquet over a writer.
pub struct Parquet<W: Write + Send> {
    out: SerializedFileWriter<W>,
    group: Group,
}

impl<W: Write + Send> Parquet<W> {
    /// # Errors
    /// When the beginning cannot be written.
    pub fn new(out: W) -> Result<Self, ExportError> {
        let fields = COLUMNS.iter().map(|column| Ok(Arc::new(field(column)?))).collect::<Result<_, ExportError>>()?;
        let schema = Type::group_type_builder("record").with_fields(fields).build()?;
        let properties = WriterProperties::builder()
            .set_created_by(concat!("detector ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
            // One minimum and maximum a group and column. Those of pages would be kept until the end, for all groups.
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_offset_index_disabled(true)
            .build();
        let out = SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties))?;
        Ok(Self { out, group: Group::new() })
    }

    fn flush(&mut self) -> Result<(), ExportError> {
        if self.group.rows == 0 {
            return Ok(());
        }
        let mut writer = self.out.next_row_group()?;
        for column in &mut self.group.columns {
            if let Some(mut out) = writer.next_column()? {
                column.write(&mut out)?;
                out.close()?;
            }
        }
        writer.close()?;
        (self.group.rows, self.group.bytes) = (0, 0);
        Ok(())
    }
}

impl<W: Write + Send> Exporter for Parquet<W> {
    fn push(&mut self, seen: &Seen<'_>) -> Result<(), ExportError> {
        self.group.push(&seen.row);
        if self.group.rows >= ROWS || self.group.bytes >= TEXTS {
            self.flush()?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), ExportError> {
        self.flush()?;
        self.out.into_inner()?.flush()?;
        Ok(())
    }
}

fn field(column: &Column) -> Result<Type, ExportError> {
    let unsigned = |bit_width| Some(LogicalType::integer(bit_width, false));
    let (physical, logical) = match column.kind {
        Kind::U32 => (Physical::INT32, unsigned(32)),
        Kind::U64 => (Physical::INT64, unsigned(64)),
        Kind::I32 => (Physical::INT32, None),
        Kind::Bool => (Physical::BOOLEAN, None),
        Kind::Time => (Physical::INT64, Some(LogicalType::timestamp(true, TimeUnit::NANOS))),
        // JSON is text too: its own type is not read as such everywhere.
        Kind::Text | Kind::Json => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
    };
    Ok(Type::primitive_type_builder(column.name, physical)
        .with_logical_type(logical)
        .with_repetition(Repetition::OPTIONAL)
        .build()?)
}

/// The rows of a row group, by column.
struct Group {
    columns: Vec<Values>,
    rows: usize,
    bytes: usize,
}

impl Group {
    fn new() -> Self {
        Self { columns: COLUMNS.iter().map(|column| Values::new(column.kind)).collect(), rows: 0, bytes: 0 }
    }

    fn push(&mut self, row: &Row<'_>) {
        for (column, values) in COLUMNS.iter().zip(&mut self.columns) {
            self.bytes += values.push((column.get)(row));
        }
        self.rows += 1;
    }
}

/// A column's values, and for each row whether it has one.
struct Values {
    present: Vec<i16>,
    of: Of,
}

enum Of {
    I32(Vec<i32>),
    I64(Vec<i64>),
    Bool(Vec<bool>),
    Text(Texts),
}

/// Texts, each different one kept once: most of a column's are the same few.
#[derive(Default)]
struct Texts {
    known: HashMap<Bytes, u32>,
    all: Vec<Bytes>,
    values: Vec<u32>,
}

impl Values {
    fn new(kind: Kind) -> Self {
        let of = match kind {
            Kind::U32 | Kind::I32 => Of::I32(Vec::new()),
            Kind::U64 | Kind::Time => Of::I64(Vec::new()),
            Kind::Bool => Of::Bool(Vec::new()),
            Kind::Text | Kind::Json => Of::Text(Texts::default()),
        };
        Self { present: Vec::new(), of }
    }

    /// Returns the bytes that it takes.
    fn push(&mut self, cell: Option<Cell<'_>>) -> usize {
        self.present.push(cell.is_some().into());
        // Unsigned numbers keep their bits: Parquet has them in signed ones.
        match (&mut self.of, cell) {
            (Of::I32(values), Some(Cell::U32(number))) => values.push(number.cast_signed()),
            (Of::I32(values), Some(Cell::I32(number))) => values.push(number),
            (Of::I64(values), Some(Cell::U64(number))) => values.push(number.cast_signed()),
            (Of::I64(values), Some(Cell::Time(number))) => values.push(number),
            (Of::Bool(values), Some(Cell::Bool(is))) => values.push(is),
            (Of::Text(texts), Some(Cell::Text(text))) => return texts.push(text),
            (_, None) => {}
            (_, Some(cell)) => unreachable!("{cell:?} in a column of another type: both come of one table"),
        }
        0
    }

    fn write(&mut self, out: &mut SerializedColumnWriter<'_>) -> Result<(), ExportError> {
        let present = Some(&self.present[..]);
        match &mut self.of {
            Of::I32(values) => {
                out.typed::<Int32Type>().write_batch(values, present, None)?;
                values.clear();
            }
            Of::I64(values) => {
                out.typed::<Int64Type>().write_batch(values, present, None)?;
                values.clear();
            }
            Of::Bool(values) => {
                out.typed::<BoolType>().write_batch(values, present, None)?;
                values.clear();
            }
            Of::Text(texts) => texts.write(&self.present, out)?,
        }
        self.present.clear();
        Ok(())
    }
}

impl Texts {
    fn push(&mut self, text: &str) -> usize {
        if let Some(index) = self.known.get(text.as_bytes()) {
            self.values.push(*index);
            return 0;
        }
        // A group has fewer rows than that.
        let index = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        let text = Bytes::copy_from_slice(text.as_bytes());
        let len = text.len();
        self.known.insert(text.clone(), index);
        self.all.push(text);
        self.values.push(index);
        len + ENTRY
    }

    fn write(&mut self, present: &[i16], out: &mut SerializedColumnWriter<'_>) -> Result<(), ExportError> {
        let mut values = self.values.iter().filter_map(|index| self.all.get(usize::try_from(*index).ok()?));
        for present in present.chunks(BATCH) {
            let some = present.iter().filter(|is| **is != 0).count();
            let batch: Vec<_> = values.by_ref().take(some).map(|text| ByteArray::from(text.clone())).collect();
            out.typed::<ByteArrayType>().write_batch(&batch, Some(present), None)?;
        }
        *self = Self::default();
        Ok(())
    }
}
