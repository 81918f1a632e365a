// Elements, numbers as text, and data that is unpacked when it is needed. Text never enters the page as HTML.

const SVG = "http://www.w3.org/2000/svg";

function make(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes ?? {})) {
        if (value === null || value === undefined || value === false) continue;
        if (name === "text") node.textContent = value;
        else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
        else if (name === "vars") for (const [key, v] of Object.entries(value)) node.style.setProperty(key, v);
        else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
}

const el = (tag, attributes, ...children) => make(document.createElement(tag), attributes, children);
const draw = (tag, attributes, ...children) => make(document.createElementNS(SVG, tag), attributes, children);

const unpacked = new Map();

/** Return the JSON of a packed block, which is unpacked once. */
function block(id) {
    if (!unpacked.has(id)) unpacked.set(id, unpack(id));
    return unpacked.get(id);
}

const ARRAYS = { u16: Uint16Array, i16: Int16Array, i32: Int32Array, f32: Float32Array };

/** Unpack a result of `pack` in html.py: its JSON, with the arrays under `arrays` if there are any. */
async function unpack(id) {
    const packed = atob(document.getElementById(id).textContent);
    const bytes = Uint8Array.from(packed, (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const buffer = await new Response(stream).arrayBuffer();
    const length = new DataView(buffer).getUint32(0, true);
    const { data, arrays } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    if (!arrays.length) return data;
    let start = 4 + length;
    data.arrays = {};
    for (const [name, type, shape] of arrays) {
        const count = shape.reduce((a, b) => a * b, 1);
        data.arrays[name] = rowsOf(new ARRAYS[type](buffer, start, count), shape.at(-1));
        start += Math.ceil((count * ARRAYS[type].BYTES_PER_ELEMENT) / 4) * 4;
    }
    return data;
}

/** Return row i of an array, given the length of its rows. */
const rowsOf = (values, width) => (i) => values.subarray(i * width, (i + 1) * width);

const MINUS = "\u2212";

/** Return a number as text with a number of decimals and a real minus sign; a dash if there is no number. */
function number(value, decimals = 2, signed = false) {
    if (value === null || value === undefined) return "–";
    const text = Math.abs(value).toFixed(decimals);
    const isZero = Number(text) === 0;
    return (value < 0 && !isZero ? MINUS : signed && !isZero ? "+" : "") + text;
}

/** Return a number of any size as text with about three digits. */
function short(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size >= 1e6) return number(value / 1e6, size >= 1e7 ? 0 : 1) + "M";
    if (size >= 1e4) return number(value / 1e3, 0) + "k";
    if (size >= 100) return number(value, 0);
    if (size >= 0.01)
        return number(value, size >= 10 ? 1 : size >= 1 ? 2 : 3)
            .replace(/(\.\d*?)0+$/, "$1")
            .replace(/\.$/, "");
    const [digits, power] = size.toExponential(1).split("e");
    const raised = String(Number(power))
        .replace("-", "⁻")
        .replace(/\d/g, (d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]);
    return `${value < 0 ? MINUS : ""}${digits.replace(".0", "")}·10${raised}`;
}

function seconds(value) {
    if (value < 90) return `${number(value, value < 10 ? 1 : 0)} s`;
    return value < 5400 ? `${number(value / 60, 0)} min` : `${number(value / 3600, 1)} h`;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** Call `render(width)` when the node is in the page, and again when its width changes. */
function whenSized(node, render) {
    let last = 0;
    new ResizeObserver(([entry]) => {
        const width = Math.floor(entry.contentRect.width);
        if (width > 0 && width !== last) render((last = width));
    }).observe(node);
}

/** A group of radio buttons that look like a segmented switch. */
function choice(legend, name, options, chosen, onpick) {
    const field = el("fieldset", { class: "choice" }, el("legend", { text: legend }));
    for (const { value, label, title } of options) {
        const input = el("input", { type: "radio", name, value, checked: value === chosen, onchange: () => onpick(value) });
        field.append(el("label", { title }, input, el("span", { text: label })));
    }
    field.pick = (value) => {
        for (const input of field.querySelectorAll("input")) input.checked = input.value === String(value);
    };
    return field;
}
