//! How messages are put into HTTP/2 frames.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Protobuf as everybody speaks it, but messages that are ready together leave together.
///
/// An encoder gathers what is ready until it holds 256 KiB. At tonic's 32 KiB a stream
/// of pages is written four at a time; at 256 KiB half as many writes carry three times the pages
/// (measured with frames of 1 MiB on loopback). A message that is alone does not wait for others.
#[derive(Debug)]
pub struct BatchingCodec<T, U>(PhantomData<(T, U)>);

/// Room that an encoder begins with, and grows by: one page.
const BUFFER: usize = 8 << 10;
/// Bytes that are written at once, about.
const YIELD_AT: usize = 256 << 10;

impl<T, U> Default for BatchingCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BatchingCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, YIELD_AT))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, YIELD_AT))
    }
}
