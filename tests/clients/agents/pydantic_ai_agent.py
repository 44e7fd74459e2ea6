"""An agent of pydantic-ai, over each of the three dialects."""

import asyncio

from pydantic_ai import Agent, ModelRetry
from tools import QUESTION, STREAMED, URL, WAY, get_weather, to_fahrenheit


def model() -> object:
    if WAY == "messages":
        from anthropic import AsyncAnthropic
        from pydantic_ai.models.anthropic import AnthropicModel
        from pydantic_ai.providers.anthropic import AnthropicProvider

        client = AsyncAnthropic(base_url=URL.removesuffix("/v1"), api_key="unused", max_retries=0)
        return AnthropicModel("claude-x", provider=AnthropicProvider(anthropic_client=client))
    from openai import AsyncOpenAI
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(openai_client=AsyncOpenAI(base_url=URL, api_key="unused", max_retries=0))
    kind = OpenAIResponsesModel if WAY == "responses" else OpenAIChatModel
    return kind("gpt-x", provider=provider)


def weather(city: str) -> str:
    """The temperature in a city, in degrees Celsius."""
    try:
        return get_weather(city)
    except ValueError as error:
        raise ModelRetry(str(error)) from error


weather.__name__ = "get_weather"
agent = Agent(model(), tools=[weather, to_fahrenheit])


async def main() -> None:
    if not STREAMED:
        print((await agent.run(QUESTION)).output)
        return
    async with agent.run_stream(QUESTION) as result:
        print(await result.get_output())


asyncio.run(main())
