// Asks a running Agora node for TEXT representations over js-libp2p and compares the answers of its
// fixed model (`python -m node --model test`) with the vectors; then sends it the frames that must be
// refused and compares the codes. Node 22 or newer:
//
//   npm ci && npm run --silent tensor -- /ip4/127.0.0.1/tcp/PORT/p2p/ID [VECTORS]
//
// One JSON line per case. Exit code 0: all as in the vectors; 1: something differs, or the node could
// not be asked, which standard error says in one line; 2: wrong usage.
//
// The whole protocol is here: a frame is "AGT", a version byte, the header's length (u32, little
// endian), a protobuf header, then the payloads.

import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
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
const CODES = [
  'UNKNOWN', 'MALFORMED', 'VERSION', 'BAD_SHAPE', 'BAD_DTYPE', 'BAD_VALUE', 'TOO_LARGE',
  'UNKNOWN_MODALITY', 'BUSY', 'DEADLINE', 'BACKWARD_REFUSED', 'INTERNAL'
]
const REMAINING_MS = 10_000
const ANSWER_MS = 2 * REMAINING_MS // a node that has said nothing by then never will
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

function parseFailure (data) {
  const failure = { code: 0, detail: '' }
  for (const [field, value] of fields(data)) {
    if (field === 1) failure.code = value
    if (field === 2) failure.detail = Buffer.from(value).toString()
  }
  return failure
}

function parseAnswer (frame) {
  if (frame.length === 0) throw new Error('the node ended the stream without an answer')
  if (frame.length < 8) throw new Error(`an answer of ${frame.length} bytes`)
  if (frame.subarray(0, 4).toString('latin1') !== 'AGT\x01') throw new Error('not a tensor frame')
  const end = 8 + frame.readUInt32LE(4)
  if (frame.length < end) throw new Error('an answer that ends in its header')
  const header = { parts: [] }
  for (const [field, value] of fields(frame.subarray(8, end))) {
    if (field === 1) header.kind = value
    if (field === 2) header.requestId = Buffer.from(value)
    if (field === 4) header.parts.push(parsePart(value))
    if (field === 9) header.failure = parseFailure(value)
  }
  return { header, payload: frame.subarray(end) }
}

// Asking: one exchange per stream.

async function exchange (node, peer, frame) {
  const signal = AbortSignal.timeout(ANSWER_MS)
  const stream = await node.dialProtocol(peer, PROTOCOL, { signal })
  signal.addEventListener('abort', () => stream.abort(new Error(`no answer in ${ANSWER_MS} ms`)))
  stream.send(frame)
  await stream.close({ signal }) // our half: the request is whole
  const chunks = []
  let total = 0
  for await (const chunk of stream) {
    chunks.push(Buffer.from(chunk.subarray()))
    total += chunks.at(-1).length
    if (total > FRAME_BYTES_MAX) throw new Error('an answer without an end')
  }
  return parseAnswer(Buffer.concat(chunks))
}

async function representation (node, peer, { shape, payload }) {
  const requestId = randomBytes(16)
  const frame = requestFrame(requestId, shape, Buffer.from(payload, 'hex'))
  const { header, payload: answer } = await exchange(node, peer, frame)
  if (header.kind === FAILURE) {
    throw new Error(`refused: ${CODES[header.failure?.code]} ${header.failure?.detail}`)
  }
  if (header.kind !== RESULT || header.parts.length !== 1) throw new Error('not a result')
  if (!header.requestId?.equals(requestId)) throw new Error('the answer is to another request')
  const [part] = header.parts
  const size = part.shape.reduce((left, right) => left * right, 4)
  if (part.dtype !== FLOAT32 || part.payloadBytes !== answer.length || size !== answer.length) {
    throw new Error('a lying header')
  }
  const values = []
  for (let at = 0; at < answer.length; at += 4) values.push(answer.readFloatLE(at))
  return { shape: part.shape, values }
}

// Cases.

async function checkText (node, peer, { name, input, output }) {
  const answer = await representation(node, peer, input.parts[0])
  const line = { name, shape: answer.shape, values: answer.values.length }
  if (JSON.stringify(answer.shape) !== JSON.stringify(output.shape)) {
    return { ...line, equal: false, wanted: output.shape }
  }
  const at = output.values.findIndex((value, index) => value !== answer.values[index])
  if (at < 0) return { ...line, equal: true }
  return { ...line, equal: false, at, got: answer.values[at], wanted: output.values[at] }
}

async function checkRefusal (node, peer, { name, input, output }) {
  const { header } = await exchange(node, peer, Buffer.from(input.frame, 'hex'))
  const code = header.kind === FAILURE ? CODES[header.failure?.code] : 'an answer'
  const equal = code === output.code
  return { name, code, equal, ...(equal ? {} : { wanted: output.code }) }
}

const isText = ({ input }) => input.parts?.length === 1 && input.parts[0].modality === 'TEXT'
const isRefusal = ({ input, output }) => input.frame !== undefined && output.code !== undefined

async function check (node, peer, cases) {
  let equal = true
  for (const each of cases) {
    let line
    try {
      line = await (isText(each) ? checkText : checkRefusal)(node, peer, each)
    } catch (error) {
      throw new Error(`case "${each.name}": ${error.message}`)
    }
    console.log(JSON.stringify(line))
    equal &&= line.equal
  }
  return equal
}

async function main (address, path) {
  const peer = multiaddr(address)
  const all = JSON.parse(readFileSync(path, 'utf8')).cases ?? []
  const cases = [...all.filter(isText), ...all.filter(isRefusal)]
  if (!cases.some(isText)) throw new Error(`no TEXT cases in ${path}`)
  const node = await createLibp2p({
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionGater: { denyDialMultiaddr: () => false },
    services: { identify: identify() }
  })
  try {
    await node.dial(peer).catch(error => {
      throw new Error(`cannot connect to ${address}: ${error.message}`)
    })
    if (await check(node, peer, cases)) return 0
    console.error('tensor.js: the node answers otherwise than the vectors')
    return 1
  } finally {
    await node.stop()
  }
}

const [address, path = fileURLToPath(new URL('../vectors/tensor.json', import.meta.url)), ...more] =
  process.argv.slice(2)
if (address === undefined || address.startsWith('-') || more.length > 0) {
  console.error('usage: node tensor.js MULTIADDR [VECTORS]')
  process.exit(2)
}
if (Number(process.versions.node.split('.')[0]) < 22) {
  console.error(`tensor.js: js-libp2p needs Node 22, this is ${process.version}; ` +
    'use: npm run --silent tensor -- MULTIADDR')
  process.exit(2)
}
process.exit(await main(address, path).catch(error => {
  console.error(`tensor.js: ${error.message}`)
  return 1
}))
