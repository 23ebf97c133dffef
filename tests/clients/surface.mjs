// openai-node over its main families; one JSON object with what came back goes to stdout.
import OpenAI, { toFile } from 'openai';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';

const { KEY, BASE_URL } = process.env;
const client = new OpenAI({ apiKey: KEY, baseURL: BASE_URL, maxRetries: 0, timeout: 20_000 });
const seen = {};

const chat = { model: 'gpt-3.5-turbo', messages: [{ role: 'user', content: 'Grüße, Azure' }] };
const whole = await client.chat.completions.create(chat);
seen.chat = [whole.model, whole.choices[0].message.content, Object.keys(whole.choices[0]).sort()];

let text = '';
for await (const chunk of await client.chat.completions.create({ ...chat, stream: true })) text += chunk.choices[0].delta.content ?? '';
seen.stream = text;

const response = await client.responses.create({ model: 'gpt-4o', input: 'hello' });
seen.response = [response.output_text, 'content_filters' in response];

const events = [];
const stream = client.responses.stream({ model: 'gpt-4o', input: 'hello' });
for await (const event of stream) events.push(event.type);
const final = await stream.finalResponse();
seen.events = [events[0], events.at(-1), final.output_text, 'content_filters' in final];

seen.embeddings = (await client.embeddings.create({ model: 'text-embedding-3-small', input: ['one', 'two'] })).data.map((it) => it.embedding.length);

const file = await client.files.create({ file: await toFile(Buffer.from('{}\n'), 'batch.jsonl'), purpose: 'batch' });
seen.file = [file.filename, file.bytes, file.purpose];
seen.files = [];
for await (const it of client.files.list({ limit: 1 })) seen.files.push(it.id);
seen.content = (await (await client.files.content('file-1')).arrayBuffer()).byteLength;

const speech = await client.audio.speech.create({ model: 'tts-1', voice: 'alloy', input: 'hello' });
seen.speech = [speech.headers.get('content-type'), (await speech.arrayBuffer()).byteLength];
const wav = await toFile(Buffer.from([0, 255, 13, 10]), 'hello.wav');
seen.transcription = (await client.audio.transcriptions.create({ model: 'whisper-1', file: wav })).text;
seen.translation = (await client.audio.translations.create({ model: 'whisper-1', file: wav })).text;

const image = await client.images.generate({ model: 'gpt-image-1', prompt: 'a corgi' });
seen.image = Object.keys(image.data[0]);
const png = await toFile(Buffer.from('png'), 'a.png', { type: 'image/png' });
seen.edit = Object.keys((await client.images.edit({ model: 'gpt-image-1', image: png, prompt: 'a corgi' })).data[0]);

const refused = await client.moderations.create({ input: 'hello' }).catch((error) => error);
seen.moderations = [refused.constructor.name, refused.status, refused.code, refused.type];

seen.realtime = await new Promise((resolve, reject) => {
  const realtime = new OpenAIRealtimeWS({ model: 'gpt-realtime' }, client);
  const types = [];
  realtime.on('error', reject);
  realtime.on('event', (event) => {
    types.push(event.type);
    if (event.type === 'session.created') realtime.send({ type: 'response.create' });
    if (event.type === 'response.done') realtime.close();
  });
  realtime.socket.on('close', () => resolve(types));
});

console.log(JSON.stringify(seen));
