// Draws openapi.json. Whatever stands in that document came over the network, so it only ever becomes text.
"use strict";

const METHODS = ["get", "post", "put", "patch", "delete"];

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function describe(schema) {
  if (schema === undefined || schema === true) return "any";
  if (schema.$ref) return schema.$ref.split("/").pop();
  const choices = schema.anyOf || schema.oneOf;
  if (choices) return choices.map(describe).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return `${describe(schema.items)}[]`;
  return schema.format ? `${schema.type} (${schema.format})` : String(schema.type || "any");
}

function resolve(schema, schemas) {
  for (let steps = 0; schema && schema.$ref && steps < 8; steps += 1) {
    schema = schemas[schema.$ref.split("/").pop()];
  }
  return schema;
}

function example(schema, schemas, depth = 0) {
  schema = resolve(schema, schemas);
  if (!schema || depth > 5) return null;
  if (schema.default !== undefined) return schema.default;
  if (Array.isArray(schema.examples) && schema.examples.length) return schema.examples[0];
  if (schema.const !== undefined) return schema.const;
  if (schema.enum) return schema.enum[0];
  const choices = schema.anyOf || schema.oneOf;
  if (choices) return example(choices[0], schemas, depth + 1);
  if (schema.properties) {
    return Object.fromEntries(
      Object.entries(schema.properties).map(([name, field]) => [name, example(field, schemas, depth + 1)]),
    );
  }
  return { object: {}, array: [], integer: 0, number: 0, boolean: false, string: "", null: null }[schema.type] ?? null;
}

function parameterTable(parameters) {
  const rows = parameters.map((parameter) =>
    element("tr", {},
      element("td", {}, element("code", { textContent: parameter.name })),
      element("td", { textContent: parameter.in }),
      element("td", { textContent: describe(parameter.schema) }),
      element("td", { textContent: parameter.required ? "required" : "" })));
  const heads = ["parameter", "in", "type", ""].map((text) => element("th", { textContent: text }));
  return element("table", {}, element("tr", {}, ...heads), ...rows);
}

function schemaBlock(heading, schema, schemas) {
  const known = resolve(schema, schemas);
  return [
    element("h3", { textContent: heading }),
    element("pre", { textContent: JSON.stringify(known === undefined ? schema : known, null, 2) }),
  ];
}

async function send(method, path, inputs, body, output) {
  const url = inputs
    .filter((input) => input.place === "path")
    .reduce((text, input) => text.replace(`{${input.name}}`, encodeURIComponent(input.node.value)), path);
  const query = new URLSearchParams(
    inputs.filter((input) => input.place === "query" && input.node.value).map((input) => [input.name, input.node.value]),
  );
  const headers = {};
  for (const input of inputs) {
    if (input.place === "header" && input.node.value) headers[input.name] = input.node.value;
  }
  const key = document.getElementById("key").value;
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  output.hidden = false;
  output.textContent = "…";
  try {
    const answer = await fetch(`.${url}${query.size ? `?${query}` : ""}`, {
      method: method.toUpperCase(), headers, body: body ? body.value : undefined,
    });
    let text = await answer.text();
    try { text = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON: shown as it is */ }
    output.textContent = `${answer.status} ${answer.statusText}\n${text}`;
  } catch (failure) {
    output.textContent = `No answer: ${failure.message}`;
  }
}

function trial(method, path, operation, schemas) {
  const inputs = (operation.parameters || []).map((parameter) => ({
    name: parameter.name, place: parameter.in, node: element("input", { ariaLabel: parameter.name }),
  }));
  const content = operation.requestBody && operation.requestBody.content["application/json"];
  const body = content && element("textarea", {
    spellcheck: false, ariaLabel: "body", value: JSON.stringify(example(content.schema, schemas) ?? {}, null, 2),
  });
  const output = element("pre", { hidden: true });
  const button = element("button", { type: "submit", textContent: "Send" });
  const form = element("form", {},
    element("h3", { textContent: "Try it" }),
    element("div", { className: "fields" },
      ...inputs.map((input) => element("label", {}, input.name, input.node))),
    ...(body ? [body] : []), button, output);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(method, path, inputs, body, output);
  });
  return form;
}

function fill(details, method, path, operation, schemas) {
  const box = element("div", { className: "body" });
  if (operation.description) box.append(element("p", { textContent: operation.description }));
  if (operation.parameters) box.append(parameterTable(operation.parameters));
  const content = operation.requestBody && operation.requestBody.content["application/json"];
  if (content) box.append(...schemaBlock("Body", content.schema, schemas));
  for (const [status, answer] of Object.entries(operation.responses)) {
    if (status === "default") continue;
    const described = answer.content && Object.values(answer.content)[0].schema;
    const heading = `Answer ${status} ${answer.description}`;
    box.append(...(described ? schemaBlock(heading, described, schemas) : [element("h3", { textContent: heading })]));
  }
  box.append(trial(method, path, operation, schemas));
  details.append(box);
}

function draw(specification) {
  const schemas = (specification.components && specification.components.schemas) || {};
  document.getElementById("description").textContent = specification.info.description || "";
  const groups = new Map();
  for (const [path, item] of Object.entries(specification.paths)) {
    for (const method of METHODS.filter((name) => item[name])) {
      const operation = item[method];
      const summary = element("summary", {},
        element("span", { className: `method ${method}`, textContent: method.toUpperCase() }),
        element("span", { className: "path", textContent: path }),
        ...(operation.security ? [element("span", { className: "lock", textContent: "admin key" })] : []),
        element("span", { className: "name", textContent: operation.summary || "" }));
      const details = element("details", { className: "operation" }, summary);
      details.dataset.text = `${method} ${path} ${operation.summary || ""}`.toLowerCase();
      details.addEventListener("toggle", () => fill(details, method, path, operation, schemas), { once: true });
      const tag = (operation.tags && operation.tags[0]) || "other";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(details);
    }
  }
  const main = document.getElementById("operations");
  for (const [tag, operations] of groups) {
    main.append(element("section", {}, element("h2", { textContent: tag }), ...operations));
  }
  main.ariaBusy = "false";
}

function filter(event) {
  const wanted = event.target.value.toLowerCase();
  for (const section of document.querySelectorAll("section")) {
    let shown = 0;
    for (const details of section.querySelectorAll(".operation")) {
      details.hidden = !details.dataset.text.includes(wanted);
      shown += details.hidden ? 0 : 1;
    }
    section.hidden = shown === 0;
  }
}

document.getElementById("filter").addEventListener("input", filter);
fetch("openapi.json")
  .then((answer) => {
    if (!answer.ok) throw new Error(`openapi.json answered ${answer.status}`);
    return answer.json();
  })
  .then(draw)
  .catch((failure) => {
    const alert = document.getElementById("failure");
    alert.textContent = `The document could not be drawn: ${failure.message}`;
    alert.hidden = false;
  });
