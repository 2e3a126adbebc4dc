// A js-libp2p peer under the control of whoever started it: one JSON command a line on standard
// input, one JSON answer a line on standard output. Bytes travel as base64.
//
//   node peer.js '{"kad": "/agora/kad/1.0.0", "signed": false, "meshDegree": 8}'
//
// It serves /interop/echo/1 (returns what it reads until the end), /interop/slow/1 (the same, but
// pauses for 8 s after the first bytes) and /interop/digest/1 (reads all, answers its SHA-256).

import { createHash } from 'node:crypto'
import { createInterface } from 'node:readline'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { mplex } from '@libp2p/mplex'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { blake3 } from '@noble/hashes/blake3.js'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'
import { peerIdFromString } from '@libp2p/peer-id'

const ECHO = '/interop/echo/1'
const SLOW = '/interop/slow/1'
const DIGEST = '/interop/digest/1'
const PAUSE_MS = 8000
const CHUNK_BYTES = 64 * 1024

const options = JSON.parse(process.argv[2] ?? '{}')
const degree = options.meshDegree ?? 8
const anyRecord = { t: async () => {} }
const greatest = {
  t: (_key, values) => values.reduce(
    (best, value, index) => Buffer.compare(value, values[best]) > 0 ? index : best, 0)
}

// The id of an unsigned message is a digest of topic and data, as on every topic of Agora.
function contentId (message) {
  const topic = Buffer.from(message.topic)
  const length = Buffer.alloc(2)
  length.writeUInt16BE(topic.length)
  return blake3(Buffer.concat([length, topic, message.data])).subarray(0, 20)
}

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: options.mplexFirst === true ? [mplex(), yamux()] : [yamux()],
  connectionMonitor: { enabled: false },
  connectionGater: { denyDialMultiaddr: () => false },
  services: {
    identify: identify(),
    ping: ping(),
    dht: kadDHT({
      protocol: options.kad ?? '/ipfs/kad/1.0.0',
      clientMode: false,
      allowQueryWithZeroPeers: true,
      initialQuerySelfInterval: 100,
      peerInfoMapper: passthroughMapper,
      validators: anyRecord,
      selectors: greatest
    }),
    pubsub: gossipsub({
      ...(options.signed === true
        ? { globalSignaturePolicy: 'StrictSign' }
        : { globalSignaturePolicy: 'StrictNoSign', msgIdFn: contentId }),
      allowPublishToZeroTopicPeers: true,
      fallbackToFloodsub: false,
      floodPublish: false, // what arrives came by the mesh, or else by IHAVE and IWANT
      emitSelf: false,
      D: degree,
      Dlo: Math.min(6, degree),
      Dhi: degree === 0 ? 0 : 12,
      Dout: 0,
      Dlazy: 6,
      heartbeatInterval: 500
    })
  }
})

async function drained (stream) {
  if (stream.writableNeedsDrain) await stream.onDrain()
}

async function echo (stream) {
  for await (const chunk of stream) {
    stream.send(chunk)
    await drained(stream)
  }
  await stream.close()
}

async function slow (stream) {
  let paused = false
  for await (const chunk of stream) {
    if (!paused) {
      paused = true
      stream.pause()
      await new Promise(resolve => setTimeout(resolve, PAUSE_MS))
      stream.resume()
    }
    stream.send(chunk)
    await drained(stream)
  }
  await stream.close()
}

async function digest (stream) {
  const hash = createHash('sha256')
  for await (const chunk of stream) hash.update(chunk.subarray())
  stream.send(hash.digest())
  await stream.close()
}

await node.handle(ECHO, echo)
await node.handle(SLOW, slow)
await node.handle(DIGEST, digest)

const received = new Map()
node.services.pubsub.addEventListener('message', ({ detail }) => {
  const list = received.get(detail.topic) ?? []
  list.push(Buffer.from(detail.data).toString('base64'))
  received.set(detail.topic, list)
})

// Send `size` bytes and the end, count what comes back; with `pause` read nothing for that long.
async function roundTrip ({ peer, protocol, size, pause = 0 }) {
  const stream = await node.dialProtocol(peerIdFromString(peer), protocol)
  const sent = createHash('sha256')
  const back = createHash('sha256')
  let count = 0
  const reading = (async () => {
    let waited = pause === 0
    for await (const chunk of stream) {
      if (!waited) {
        waited = true
        stream.pause()
        await new Promise(resolve => setTimeout(resolve, pause))
        stream.resume()
      }
      back.update(chunk.subarray())
      count += chunk.byteLength
    }
  })()
  for (let offset = 0; offset < size; offset += CHUNK_BYTES) {
    const chunk = Buffer.alloc(Math.min(CHUNK_BYTES, size - offset), offset / CHUNK_BYTES % 251)
    sent.update(chunk)
    stream.send(chunk)
    await drained(stream)
  }
  await stream.close()
  await reading
  return { count, equal: sent.digest('hex') === back.digest('hex') }
}

async function firstOf (events, pick) {
  for await (const event of events) {
    const found = pick(event)
    if (found != null) return found
  }
  return null
}

const bytes = text => Uint8Array.from(Buffer.from(text, 'base64'))
const cidOf = multihash => CID.createV1(0x55, Digest.decode(bytes(multihash)))
const within = () => ({ signal: AbortSignal.timeout(20_000) })

const commands = {
  addresses: async () => node.getMultiaddrs().map(String),
  dial: async ({ address }) => (await node.dial(multiaddr(address))).remotePeer.toString(),
  hangup: async ({ peer }) => { await node.hangUp(peerIdFromString(peer)); return true },
  peers: async () => node.getPeers().map(String),
  identified: async ({ peer }) => {
    const known = await node.peerStore.get(peerIdFromString(peer))
    const agent = known.metadata.get('AgentVersion')
    return { protocols: known.protocols, agent: agent && Buffer.from(agent).toString() }
  },
  ping: async ({ peer }) => node.services.ping.ping(peerIdFromString(peer)),
  roundTrip,
  subscribe: async ({ topic }) => { node.services.pubsub.subscribe(topic); return true },
  topicPeers: async ({ topic }) => node.services.pubsub.getSubscribers(topic).map(String),
  meshPeers: async ({ topic }) => node.services.pubsub.getMeshPeers(topic),
  publish: async ({ topic, data }) => {
    await node.services.pubsub.publish(topic, bytes(data))
    return true
  },
  received: async ({ topic }) => received.get(topic) ?? [],
  tablePeers: async () => [...node.services.dht.routingTable.kb.toIterable()].length,
  provide: async ({ key }) => {
    for await (const _event of node.services.dht.provide(cidOf(key), within())) { /* to its end */ }
    return true
  },
  findProviders: async ({ key, peer }) => firstOf(
    node.services.dht.findProviders(cidOf(key), within()),
    event => event.providers?.map(provider => provider.id.toString()).find(id => id === peer)),
  put: async ({ key, value }) => {
    for await (const _event of node.services.dht.put(bytes(key), bytes(value), within())) { /* to its end */ }
    return true
  },
  get: async ({ key }) => firstOf(
    node.services.dht.get(bytes(key), within()),
    event => event.name === 'VALUE' ? Buffer.from(event.value).toString('base64') : null),
  findPeer: async ({ peer }) => firstOf(
    node.services.dht.findPeer(peerIdFromString(peer), within()),
    event => event.name === 'FINAL_PEER' ? event.peer.multiaddrs.map(String) : null)
}

function say (line) {
  process.stdout.write(JSON.stringify(line) + '\n')
}

const lines = createInterface({ input: process.stdin })
lines.on('line', async line => {
  const { id, command, ...parameters } = JSON.parse(line)
  try {
    say({ id, result: await commands[command](parameters) ?? null })
  } catch (error) {
    say({ id, error: `${error.name}: ${error.message}` })
  }
})
lines.on('close', async () => {
  await node.stop()
  process.exit(0)
})
process.on('uncaughtException', error => console.error('uncaught:', error))

say({ ready: { peerId: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) } })
