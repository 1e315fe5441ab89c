//! MessagePack with field names: the encoding on the wire, in the log and in snapshots. A field
//! that the reader does not know is skipped, a missing one takes its serde default, so nodes of
//! neighbouring versions understand each other.

use std::marker::PhantomData;

use bytes::{Buf, BufMut};
use serde::{Serialize, de::DeserializeOwned};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Bytes that are not the value they should be.
#[derive(Debug, thiserror::Error)]
#[error("cannot decode {what}: {source}")]
pub struct DecodeError {
    /// The Rust type wanted.
    pub what: &'static str,
    #[source]
    source: rmp_serde::decode::Error,
}

/// Encodes a value as MessagePack with field names.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("model types always serialize")
}

/// Decodes what [`encode`] wrote.
///
/// # Errors
/// Names the type when the bytes are not one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    rmp_serde::from_slice(bytes).map_err(|source| DecodeError {
        what: std::any::type_name::<T>(),
        source,
    })
}

/// For fields that are long byte strings: one copy, not an array of numbers.
pub(crate) mod as_bytes {
    use std::fmt;

    use bytes::Bytes;
    use serde::{
        Deserializer, Serializer,
        de::{Error, Visitor},
    };

    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        deserializer.deserialize_byte_buf(ByteString)
    }

    struct ByteString;

    impl Visitor<'_> for ByteString {
        type Value = Bytes;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a byte string")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
            Ok(Bytes::copy_from_slice(bytes))
        }

        fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
            Ok(bytes.into())
        }
    }
}

/// The tonic codec of every RPC between nodes.
#[derive(Debug)]
pub struct MsgPackCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for MsgPackCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for MsgPackCodec<T, U>
where
    T: Serialize + Send + 'static,
    U: DeserializeOwned + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = MsgPackEncoder<T>;
    type Decoder = MsgPackDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        MsgPackEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        MsgPackDecoder(PhantomData)
    }
}

#[derive(Debug)]
pub struct MsgPackEncoder<T>(PhantomData<T>);

impl<T: Serialize> Encoder for MsgPackEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        rmp_serde::encode::write_named(&mut buf.writer(), &item)
            .map_err(|err| Status::internal(format!("cannot encode the message: {err}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

#[derive(Debug)]
pub struct MsgPackDecoder<U>(PhantomData<U>);

impl<U: DeserializeOwned> Decoder for MsgPackDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if buf.remaining() == 0 {
            return Ok(None);
        }
        rmp_serde::from_read(buf.reader())
            .map(Some)
            .map_err(|err| Status::invalid_argument(format!("cannot decode the message: {err}")))
    }
}
