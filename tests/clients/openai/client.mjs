// One check of the openai npm package against the server at BASE_URL: `node client.mjs NAME`. Exits 0 if it holds.

import assert from 'node:assert/strict';
import OpenAI from 'openai';

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 0 });
const messages = [{ role: 'user', content: 'Add 87 and 25.' }];
const prompt = '<|user|>Add 87 and 25.<|assistant|>';
const greedy = { model: 'builtin', temperature: 0, max_tokens: 80 };

const checks = {
  async chat() {
    const answer = await client.chat.completions.create({ ...greedy, messages });
    assert.match(answer.choices[0].message.content, /112/);
    assert.equal(answer.choices[0].finish_reason, 'stop');
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    assert.ok(answer.usage.diffusion.tokens_per_pass > 1);
    assert.ok(answer._request_id);
  },

  async tools() {
    const parameters = { type: 'object', properties: { place: { type: 'string', maxLength: 8 } }, required: ['place'] };
    const tools = [{ type: 'function', function: { name: 'look', parameters } }];
    const ask = { ...greedy, messages, tools, tool_choice: 'required', parallel_tool_calls: false };
    const whole = await client.chat.completions.create(ask);
    assert.equal(whole.choices[0].finish_reason, 'tool_calls');
    assert.equal(whole.choices[0].message.content, null);
    const call = whole.choices[0].message.tool_calls[0];
    assert.equal(typeof JSON.parse(call.function.arguments).place, 'string');
    const final = await client.chat.completions.stream(ask).finalChatCompletion();
    assert.equal(final.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
    const result = { role: 'tool', tool_call_id: call.id, content: 'rain' };
    const next = await client.chat.completions.create({
      ...greedy, tools, messages: [...messages, whole.choices[0].message, result],
    });
    assert.ok(next.choices[0].message);
  },

  async responses() {
    const ask = { model: 'builtin', input: messages[0].content, temperature: 0, max_output_tokens: 80 };
    const whole = await client.responses.create({ ...ask, store: true });
    assert.match(whole.output_text, /112/);
    assert.equal(whole.status, 'completed');
    const final = await client.responses.stream(ask).finalResponse();
    assert.equal(final.output_text, whole.output_text);
    const next = await client.responses.create({ ...ask, previous_response_id: whole.id });
    assert.ok(next.usage.input_tokens > whole.usage.input_tokens);
    const turns = [...messages, ...whole.output, ...final.output, ...messages];
    assert.ok((await client.responses.create({ ...ask, input: turns })).output_text);
    await client.responses.delete(whole.id);
    await assert.rejects(client.responses.retrieve(whole.id), OpenAI.NotFoundError);
  },

  async responsesParse() {
    const schema = { type: 'object', properties: { sum: { type: 'integer', minimum: 0, maximum: 999 } }, required: ['sum'] };
    const format = { type: 'json_schema', name: 'sum', schema, strict: true };
    const ask = { model: 'builtin', input: messages[0].content, temperature: 0, max_output_tokens: 80 };
    const parsed = await client.responses.parse({ ...ask, text: { format } });
    assert.equal(typeof JSON.parse(parsed.output_text).sum, 'number');
    const tools = [{ type: 'function', name: 'add', parameters: schema, strict: true }];
    const called = await client.responses.parse({ ...ask, tools, tool_choice: 'required', parallel_tool_calls: false });
    assert.equal(typeof called.output[0].parsed_arguments.sum, 'number');
    const result = { type: 'function_call_output', call_id: called.output[0].call_id, output: '112' };
    assert.ok((await client.responses.create({ ...ask, tools, input: [...messages, ...called.output, result] })).output);
  },

  async chatStream() {
    for (const decoding of ['ar', 'speculative', 'auto', 'diffusion']) {
      const ask = { ...greedy, messages, decoding };
      const whole = await client.chat.completions.create(ask);
      const stream = await client.chat.completions.create({
        ...ask, stream: true, stream_options: { include_usage: true },
      });
      let text = '';
      let usage = null;
      let count = 0;
      for await (const chunk of stream) {
        text += chunk.choices[0]?.delta.content ?? '';
        usage = chunk.usage ?? usage;
        count += 1;
      }
      assert.equal(text, whole.choices[0].message.content);
      assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
      assert.ok(count > 2, `${decoding} came in ${count} chunks`);
    }
  },

  async conversation() {
    const talk = [...messages];
    for (let turn = 0; turn < 3; turn += 1) {
      const answer = await client.chat.completions.create({ ...greedy, messages: talk });
      assert.ok(answer.choices[0].message.content);
      talk.push(answer.choices[0].message, { role: 'user', content: 'Add 87 and 25.', name: 'Zo\u00eb' });
    }
    assert.match(talk[1].content, /112/);
    const streamed = await client.chat.completions.stream({ ...greedy, messages: talk }).finalMessage();
    const last = [...talk, streamed, ...messages];
    assert.ok((await client.chat.completions.create({ ...greedy, messages: last })).choices[0].message.content);
  },

  async streamHelper() {
    const run = client.chat.completions.stream({ ...greedy, messages });
    let text = '';
    run.on('content', (delta) => { text += delta; });
    assert.equal(await run.finalContent(), text);
    assert.match(text, /112/);
  },

  async completions() {
    const answer = await client.completions.create({ ...greedy, prompt: [prompt, prompt], n: 2, logprobs: 1 });
    assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2, 3]);
    for (const choice of answer.choices) {
      assert.equal(choice.logprobs.tokens.join(''), choice.text);
    }
    const cut = await client.completions.create({ ...greedy, prompt, stop: ' Add' });
    assert.equal(cut.choices[0].text, answer.choices[0].text.split(' Add')[0]);
    let text = '';
    for await (const chunk of await client.completions.create({ ...greedy, prompt, stream: true })) {
      text += chunk.choices[0].text;
    }
    assert.equal(text, answer.choices[0].text);
  },

  async drafts() {
    const stream = await client.chat.completions.create({
      ...greedy, messages, decoding: 'diffusion', threshold: null, max_denoising_steps: 8, stream: true,
      stream_options: { include_drafts: true },
    });
    let text = '';
    let masks = 0;
    for await (const chunk of stream) {
      text += chunk.choices[0].delta.content ?? '';
      masks = Math.max(masks, chunk.choices[0].draft?.masked ?? 0);
    }
    assert.ok(masks > 0);
    assert.ok(!text.includes('\u2592'));
  },

  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    assert.deepEqual(names, ['builtin', 'builtin:ar', 'builtin:diffusion', 'builtin:speculative']);
    assert.equal((await client.models.retrieve('builtin:ar')).id, 'builtin:ar');
  },

  async errors() {
    const ask = (fields) => client.chat.completions.create({ ...greedy, messages, ...fields });
    await assert.rejects(ask({ temperature: 3 }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.param, 'temperature');
      assert.equal(error.type, 'invalid_request_error');
      assert.ok(error.requestID);
      return true;
    });
    await assert.rejects(ask({ model: 'gpt-4o' }), OpenAI.NotFoundError);
    const long = client.completions.create({ ...greedy, prompt: Array(2000).fill(300) });
    await assert.rejects(long, { code: 'context_length_exceeded' });
    const stranger = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: 'wrong', maxRetries: 3 });
    await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
  },

  async abort() {
    const stream = await client.completions.create({ ...greedy, prompt, stream: true, max_tokens: 900, ignore_eos: true });
    for await (const chunk of stream) {
      assert.ok(chunk);
      break; // leaving the loop closes the connection
    }
    assert.match((await client.completions.create({ ...greedy, prompt })).choices[0].text, /112/);
  },
};

await checks[process.argv[2]]();
