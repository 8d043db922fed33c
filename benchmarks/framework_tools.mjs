// The tools that a JavaScript framework makes of zod schemas, as JSON on stdout: the twin of framework_tools.py.
// check_formats.py runs it in the framework's folder: `node framework_tools.mjs ai`.

import * as zod from "zod"

const z = zod.z
const framework = process.argv[2]
const isZod4 = typeof z.toJSONSchema === "function"

const address = z.object({ street: z.string(), city: z.string().describe("Name of the city"), zip: z.string().optional() })
const guest = z.object({ name: z.string(), age: z.number().int().min(0).max(130).default(30), address, billing: address.nullable() })
const node = z.lazy(() => z.object({ label: z.string(), children: z.array(node) }))
const email = z.object({ kind: z.literal("email"), to: z.string().email() })
const message = z.object({ kind: z.literal("sms"), number: z.string() })
const record = (values) => z.record(z.string(), values)

const SCHEMAS = {
  get_weather: { city: z.string().describe("Where."), days: z.number().int().default(1), unit: z.enum(["celsius", "fahrenheit"]) },
  convert: { value: z.number(), unit: z.nativeEnum({ C: "celsius", F: "fahrenheit" }), priority: z.nativeEnum({ LOW: 1, HIGH: 2 }) },
  book_table: { day: isZod4 ? z.iso.date() : z.string().date(), people: z.number().int().positive().optional() },
  remind: { at: z.string().datetime(), every: z.string().nullable() },
  search: { query: z.string().min(1), filters: record(z.any()).optional(), limit: z.number().min(1).max(100).default(10) },
  tag: { items: z.array(z.string()).min(1), weights: record(z.number()) },
  add_guest: { guest: guest.describe("The guest.") },
  add_guests: { guests: z.array(guest), notify: z.boolean().default(false) },
  save_tree: { root: node },
  send: { message: z.union([email, message]) },
  send_tagged: { message: z.discriminatedUnion("kind", [email, message]) },
  measure: { start: address.optional(), end: address.nullable().optional() },
  resize: { size: z.object({ width: z.number().int(), height: z.number().int().optional() }).strict() },
  bounds: { corner: z.tuple([z.number(), z.number()]), rest: z.tuple([z.string()]).rest(z.number()).optional() },
  unique: { names: z.array(z.string()).nonempty().max(5) },
  pay: { amount: z.number().multipleOf(0.01), account: z.string().uuid() },
  set_value: { key: z.string(), value: z.union([z.string(), z.number(), z.boolean(), z.null()]) },
  store: { data: z.any(), labels: record(z.array(z.string())), extra: z.unknown() },
  query_rows: { where: z.array(z.object({ field: z.string() }).passthrough()), order: z.array(z.tuple([z.string(), z.enum(["asc", "desc"])])) },
  ping: {},
}

// One converter for each framework: its client's request.
const CONVERTERS = {
  zod: async () => (name, schema) => ({ type: "function", function: { name, parameters: z.toJSONSchema(schema, { io: "input" }) } }),
  "zod-to-json-schema": async () => {
    const { zodToJsonSchema } = await import("zod-to-json-schema")
    return (name, schema) => ({ type: "function", function: { name, parameters: zodToJsonSchema(schema) } })
  },
  "@modelcontextprotocol/sdk": async () => {
    const { McpServer } = await import("@modelcontextprotocol/sdk/server/mcp.js")
    const { Client } = await import("@modelcontextprotocol/sdk/client/index.js")
    const { InMemoryTransport } = await import("@modelcontextprotocol/sdk/inMemory.js")
    return async (name, schema) => {
      const server = new McpServer({ name: "check", version: "1" })
      const client = new Client({ name: "check", version: "1" })
      server.registerTool(name, { inputSchema: schema.shape }, async () => ({ content: [] }))
      const [here, there] = InMemoryTransport.createLinkedPair()
      await Promise.all([server.connect(here), client.connect(there)])
      return (await client.listTools()).tools[0]
    }
  },
  ai: async () => {
    const { asSchema } = await import("ai")
    return async (name, schema) => ({ type: "function", name, inputSchema: await asSchema(schema).jsonSchema })
  },
  "@openai/agents": async () => {
    const { tool } = await import("@openai/agents")
    return (name, schema) => {
      const { description, parameters } = tool({ name, description: name, parameters: schema, execute: () => "" })
      return { type: "function", name, description, parameters }
    }
  },
  "@langchain/core": async () => {
    const { convertToOpenAITool } = await import("@langchain/core/utils/function_calling")
    const { tool } = await import("@langchain/core/tools")
    return (name, schema) => convertToOpenAITool(tool(() => "", { name, description: name, schema }))
  },
}

const convert = await CONVERTERS[framework]()
const made = { tools: {}, refused: {} }
for (const [name, shape] of Object.entries(SCHEMAS)) {
  try {
    made.tools[name] = await convert(name, z.object(shape))
  } catch (error) {
    made.refused[name] = String(error).slice(0, 300) // a type that this framework does not read
  }
}
console.log(JSON.stringify(made))
process.exit(0)
