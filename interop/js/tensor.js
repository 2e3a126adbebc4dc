// Asks a running Agora node for TEXT representations over js-libp2p and compares the answers of its
// fixed model (`python -m node --model test`) with the vectors. One JSON line per case; exit code 1
// when one differs.
//
//   node tensor.js /ip4/127.0.0.1/tcp/PORT/p2p/ID [../vectors/tensor.json]
//
// The whole protocol is here: a frame is "AGT", a version byte, the header's length (u32, little
// endian), a protobuf header, then the payloads.

import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const PROTOCOL = '/agora/tensor/1'
const FORWARD = 1
const RESULT = 3
const FAILURE = 5
const TEXT = 1
const FLOAT32 = 1
const INT64 = 4
const REMAINING_MS = 10_000
const FRAME_BYTES_MAX = 64 * 1024 * 1024

// Protobuf, as much of it as a header needs.

function varint (value) {
  const bytes = []
  let rest = BigInt(value)
  while (rest >= 0x80n) {
    bytes.push(Number(rest & 0x7fn) | 0x80)
    rest >>= 7n
  }
  return Buffer.from([...bytes, Number(rest)])
}

const number = (field, value) => Buffer.concat([varint(field << 3), varint(value)])
const bytes = (field, value) => Buffer.concat([varint(field << 3 | 2), varint(value.length), value])

function * fields (data) {
  let at = 0
  const next = () => {
    let value = 0n
    for (let shift = 0n; ; shift += 7n) {
      if (at >= data.length || shift > 63n) throw new Error('a broken header')
      const byte = data[at++]
      value |= BigInt(byte & 0x7f) << shift
      if (byte < 0x80) return Number(value)
    }
  }
  while (at < data.length) {
    const tag = next()
    const kind = tag & 7
    if (kind === 0) {
      yield [tag >> 3, next()]
    } else if (kind === 2) {
      const length = next()
      yield [tag >> 3, data.subarray(at, at += length)]
    } else {
      throw new Error(`wire type ${kind} in a header`)
    }
  }
}

// Frames.

function requestFrame (requestId, shape, payload) {
  const part = Buffer.concat([
    number(1, TEXT),
    number(2, INT64),
    bytes(3, Buffer.concat(shape.map(varint))),
    number(5, payload.length)
  ])
  const header = Buffer.concat([
    number(1, FORWARD),
    bytes(2, requestId),
    number(3, REMAINING_MS),
    bytes(4, part),
    number(6, FLOAT32)
  ])
  const prefix = Buffer.from('AGT\x01\0\0\0\0', 'latin1')
  prefix.writeUInt32LE(header.length, 4)
  return Buffer.concat([prefix, header, payload])
}

function parsePart (data) {
  const part = { shape: [] }
  for (const [field, value] of fields(data)) {
    if (field === 1) part.modality = value
    if (field === 2) part.dtype = value
    if (field === 3) for (const size of packed(value)) part.shape.push(size)
    if (field === 5) part.payloadBytes = value
  }
  return part
}

function packed (data) {
  const sizes = []
  let size = 0
  let shift = 0
  for (const byte of data) {
    size += (byte & 0x7f) * 2 ** shift
    shift += 7
    if (byte < 0x80) {
      sizes.push(size)
      size = shift = 0
    }
  }
  return sizes
}

function parseAnswer (frame) {
  if (frame.subarray(0, 4).toString('latin1') !== 'AGT\x01') throw new Error('not a tensor frame')
  const end = 8 + frame.readUInt32LE(4)
  const header = { parts: [] }
  for (const [field, value] of fields(frame.subarray(8, end))) {
    if (field === 1) header.kind = value
    if (field === 2) header.requestId = Buffer.from(value)
    if (field === 4) header.parts.push(parsePart(value))
    if (field === 9) header.failure = [...fields(value)].map(([, each]) => String(each)).join(' ')
  }
  return { header, payload: frame.subarray(end) }
}

async function ask (node, address, shape, payload) {
  const requestId = randomBytes(16)
  const stream = await node.dialProtocol(multiaddr(address), PROTOCOL)
  stream.send(requestFrame(requestId, shape, payload))
  await stream.close()
  const chunks = []
  let total = 0
  for await (const chunk of stream) {
    chunks.push(Buffer.from(chunk.subarray()))
    total += chunks.at(-1).length
    if (total > FRAME_BYTES_MAX) throw new Error('an answer without an end')
  }
  const { header, payload: answer } = parseAnswer(Buffer.concat(chunks))
  if (header.kind === FAILURE) throw new Error(`refused: ${header.failure}`)
  if (header.kind !== RESULT || header.parts.length !== 1) throw new Error('not a result')
  if (!header.requestId.equals(requestId)) throw new Error('the answer is to another request')
  const [part] = header.parts
  if (part.dtype !== FLOAT32 || part.payloadBytes !== answer.length) throw new Error('a lying header')
  const values = []
  for (let at = 0; at < answer.length; at += 4) values.push(answer.readFloatLE(at))
  return { shape: part.shape, values }
}

const [address, path = new URL('../vectors/tensor.json', import.meta.url).pathname] =
  process.argv.slice(2)
if (address === undefined) {
  console.error('usage: node tensor.js MULTIADDR [VECTORS]')
  process.exit(2)
}
const same = (left, right) => JSON.stringify(left) === JSON.stringify(right)
const isText = ({ input }) => input.parts?.length === 1 && input.parts[0].modality === 'TEXT'
const cases = JSON.parse(readFileSync(path, 'utf8')).cases.filter(isText)
const node = await createLibp2p({
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionGater: { denyDialMultiaddr: () => false },
  services: { identify: identify() }
})
let exitCode = cases.length > 0 ? 0 : 1
for (const { name, input, output } of cases) {
  const [{ shape, payload }] = input.parts
  const answer = await ask(node, address, shape, Buffer.from(payload, 'hex'))
  const equal = same(answer.shape, output.shape) && same(answer.values, output.values)
  if (!equal) exitCode = 1
  console.log(JSON.stringify({ name, shape: answer.shape, values: answer.values.length, equal }))
}
await node.stop()
process.exit(exitCode)
