// The two tools of every agent in node, and how each script is told what to do.
export const QUESTION = "How warm is it in Paris, in Fahrenheit?";
export const URL = process.env.SMALLCALL_URL;
export const [WAY, mode] = process.argv.slice(2);
export const STREAMED = mode === "stream";

const of = (name, type) => ({ type: "object", properties: { [name]: { type } }, required: [name], additionalProperties: false });
export const SCHEMAS = { get_weather: of("city", "string"), to_fahrenheit: of("celsius", "number") };

export const TOOLS = {
  get_weather({ city }) {
    if (city !== "Paris") throw new Error(`unknown city: ${city}`);
    return "20 degrees Celsius";
  },
  to_fahrenheit({ celsius }) {
    return `${Math.round((celsius * 9) / 5 + 32)} degrees Fahrenheit`;
  },
};

export function called(name, given) {
  try {
    return [TOOLS[name](given), false];
  } catch (error) {
    return [`error: ${error.message}`, true];
  }
}
