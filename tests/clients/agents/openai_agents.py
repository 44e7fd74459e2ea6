"""OpenAI's agents SDK, over responses and chat completions."""

import asyncio

import agents
from openai import AsyncOpenAI
from tools import QUESTION, STREAMED, TOOLS, URL, WAY

agents.set_tracing_disabled(True)
client = AsyncOpenAI(base_url=URL, api_key="unused", max_retries=0)
kind = agents.OpenAIResponsesModel if WAY == "responses" else agents.OpenAIChatCompletionsModel
agent = agents.Agent(
    name="weather",
    instructions="Use the tools.",
    model=kind(model="gpt-x", openai_client=client),
    tools=[
        # Its own words for a failed tool do not say why.
        agents.function_tool(function, failure_error_function=lambda _, error: f"error: {error}")
        for function in TOOLS.values()
    ],
)


async def main() -> None:
    if not STREAMED:
        print((await agents.Runner.run(agent, QUESTION)).final_output)
        return
    result = agents.Runner.run_streamed(agent, QUESTION)
    async for _ in result.stream_events():
        pass
    print(result.final_output)


asyncio.run(main())
