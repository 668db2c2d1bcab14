// Draws the demo's pictures as one sheet: a row per task, a column per subject.
import sharp from "sharp";

const cell = 192;
const gap = 18;
/** Wider than the rows' gap: the inputs' thumbnails reach into it. */
const columnGap = 40;
const labelWidth = 226;
const margin = 28;
const header = 40;
const inset = 64;
const font = "Inter, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif";

/**
 * @param {string[]} columns headings
 * @param {{ title: string, lines: string[], cells: { picture: import("@quad-lora/runtime").RgbImage, input?: import("@quad-lora/runtime").RgbImage }[] }[]} rows
 * @param {string} footer
 * @returns {Promise<Buffer>} PNG
 */
export async function drawContactSheet(columns, rows, footer) {
  const width = 2 * margin + labelWidth + columns.length * (cell + columnGap) - columnGap;
  const height = 2 * margin + header + rows.length * (cell + gap) - gap + 34;
  const left = (column) => margin + labelWidth + column * (cell + columnGap);
  const top = (row) => margin + header + row * (cell + gap);
  const text = [];
  const pictures = [];
  const say = (x, y, size, color, content, more = "") =>
    text.push(`<text x="${x}" y="${y}" font-size="${size}" fill="${color}" ${more}>${escapeXml(content)}</text>`);

  for (const [column, name] of columns.entries()) {
    say(left(column) + cell / 2, margin + 18, 15, "#57606a", name, 'text-anchor="middle"');
  }
  for (const [row, { title, lines, cells }] of rows.entries()) {
    say(margin, top(row) + 26, 20, "#1f2328", title, 'font-weight="600"');
    for (const [line, content] of lines.entries()) say(margin, top(row) + 50 + line * 19, 13, "#57606a", content);
    for (const [column, { picture, input }] of cells.entries()) {
      pictures.push({ input: await scaled(picture, cell, 12), left: left(column), top: top(row) });
      pictures.push(frame(left(column), top(row), cell, 12));
      if (!input) continue;
      const [x, y] = [left(column) - 28, top(row) + cell - inset - 10];
      const border = `<svg width="${inset + 8}" height="${inset + 8}"><rect width="100%" height="100%" rx="11" fill="#fff"/></svg>`;
      pictures.push({ input: Buffer.from(border), left: x - 4, top: y - 4 });
      pictures.push({ input: await scaled(input, inset, 7), left: x, top: y });
      pictures.push(frame(x, y, inset, 7));
    }
  }
  say(margin, height - margin + 6, 12, "#8c959f", footer);

  const svg = (body) =>
    Buffer.from(
      `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="${font}">${body}</svg>`,
    );
  return sharp({ create: { width, height, channels: 3, background: "#ffffff" } })
    .composite([{ input: svg(text.join("")), left: 0, top: 0 }, ...pictures])
    .png({ compressionLevel: 9, palette: true, quality: 95 })
    .toBuffer();
}

function frame(left, top, size, radius) {
  const line = `<rect x="0.5" y="0.5" width="${size - 1}" height="${size - 1}" rx="${radius}" fill="none" stroke="#d0d7de"/>`;
  return { input: Buffer.from(`<svg width="${size}" height="${size}">${line}</svg>`), left, top };
}

async function scaled({ width, height, data }, size, radius) {
  const corners = Buffer.from(`<svg><rect width="${size}" height="${size}" rx="${radius}"/></svg>`);
  return sharp(data, { raw: { width, height, channels: 3 } })
    .resize(size, size, { kernel: "lanczos3" })
    .ensureAlpha()
    .composite([{ input: corners, blend: "dest-in" }])
    .png()
    .toBuffer();
}

/** Breaks a sentence into lines of at most `length` characters. */
export function wrap(sentence, length) {
  const lines = [""];
  for (const word of sentence.split(" ")) {
    const line = lines.at(-1);
    if (line && line.length + word.length >= length) lines.push(word);
    else lines[lines.length - 1] = line ? `${line} ${word}` : word;
  }
  return lines;
}

function escapeXml(content) {
  return content.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
