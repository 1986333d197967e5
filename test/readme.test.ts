import { expect, test } from "bun:test";
import * as path from "node:path";
import { renderOptionTable } from "../server.ts";

/** A Markdown table's rows of cells, without what a formatter pads them with. */
const cells = (table: string) =>
  table
    .trim()
    .split("\n")
    .map((row) => row.split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/^-+$/, "---")));

test("README.md has the option table of server.ts", async () => {
  const readme = await Bun.file(path.join(import.meta.dir, "../README.md")).text();
  const tables = [...readme.matchAll(/<!-- options -->(.*?)<!-- \/options -->/gs)];
  expect(tables).toHaveLength(1);
  expect(cells(tables[0]?.[1] ?? "")).toEqual(cells(renderOptionTable()));
});
