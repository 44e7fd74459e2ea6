// llama.cpp behind HTTP, by the binaries that come with node-llama-cpp: for machines on which llama.cpp's own server
// cannot be built. Speaks as much of that server's `POST /completion` as the bench asks for.
// node llamacpp_server.mjs MODEL PORT THREADS SLOTS CONTEXT; to be started in the folder whose node_modules are meant.
import {createServer} from "node:http";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [modelPath, port, threads, slots, contextSize] = process.argv.slice(2);
const require = createRequire(`${process.cwd()}/package.json`);
const {getLlama, LlamaCompletion} = await import(pathToFileURL(require.resolve("node-llama-cpp")));

const llama = await getLlama({gpu: false, build: "never", maxThreads: Number(threads), logLevel: "error"});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({
    sequences: Number(slots), contextSize: Number(contextSize), threads: Number(threads)
});
const idle = Array.from({length: Number(slots)}, () => context.getSequence());
const waiting = [];

function shared(sequence, tokens) {
    const held = sequence.contextTokens;
    let count = 0;
    while (count < held.length && count < tokens.length && held[count] === tokens[count]) count++;
    return count;
}

// The idle sequence that holds the longest part of the prompt, as llama.cpp's server chooses its slots.
async function taken(tokens) {
    if (idle.length === 0) await new Promise((resolve) => waiting.push(resolve));
    const best = idle.reduce((a, b) => (shared(b, tokens) > shared(a, tokens) ? b : a));
    idle.splice(idle.indexOf(best), 1);
    return best;
}

async function complete({prompt, n_predict, grammar, cache_prompt}) {
    const sequence = await taken(prompt);
    try {
        if (!cache_prompt) await sequence.clearHistory();
        const reused = Math.min(shared(sequence, prompt), prompt.length - 1);
        let written = 0;
        const completion = new LlamaCompletion({contextSequence: sequence});
        const content = await completion.generateCompletion(prompt, {
            maxTokens: n_predict, temperature: 0, repeatPenalty: false,
            grammar: await llama.createGrammar({grammar}),
            onToken: (tokens) => { written += tokens.length; }
        });
        completion.dispose({disposeSequence: false});
        return {content, timings: {predicted_n: written, prompt_n: prompt.length - reused}};
    } finally {
        idle.push(sequence);
        waiting.shift()?.();
    }
}

createServer(async (request, response) => {
    try {
        if (request.url === "/health") return response.end("{}");
        const parts = [];
        for await (const part of request) parts.push(part);
        response.end(JSON.stringify(await complete(JSON.parse(Buffer.concat(parts).toString()))));
    } catch (error) {
        response.statusCode = 500;
        response.end(String(error));
    }
}).listen(Number(port), "127.0.0.1");
