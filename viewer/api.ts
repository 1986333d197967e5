// How the page calls the server's API: an answer, a refusal with a code, or no answer at all.

import { isTextKey, type Text } from "./text.ts";

/** A refusal is the server's own; what a proxy says, or nobody, is no answer. */
export type ApiReply =
  | { kind: "ok"; body: Record<string, unknown> }
  | { kind: "refused"; code: string; detail: Record<string, unknown> }
  | { kind: "unreachable"; status: number };

interface ApiCall {
  method?: "GET" | "POST" | "PUT" | "DELETE";
  json?: unknown;
  bytes?: ArrayBuffer;
  signal?: AbortSignal;
}

/** Calls the API; never rejects. */
export async function callApi(url: string, call: ApiCall = {}): Promise<ApiReply> {
  try {
    const response = await fetch(url, {
      method: call.method ?? "GET",
      headers: call.json === undefined ? {} : { "Content-Type": "application/json" },
      body: call.json === undefined ? (call.bytes ?? null) : JSON.stringify(call.json),
      credentials: "same-origin",
      cache: "no-store",
      // A hub answers an expired log-in with a redirect to its log-in page.
      redirect: "manual",
      signal: call.signal ?? null,
    });
    const isLogin = response.status === 401 || response.type === "opaqueredirect";
    const text = isLogin ? "" : await response.text();
    const body = isLogin ? { error: "login" } : parseObject(text);
    if (response.ok && body !== null) {
      return { kind: "ok", body };
    }
    if (typeof body?.error === "string") {
      return { kind: "refused", code: body.error, detail: toObject(body.detail) ?? {} };
    }
    // The server's own word on an expired token is a sentence.
    return response.status === 403
      ? { kind: "refused", code: "login", detail: {} }
      : { kind: "unreachable", status: response.status };
  } catch {
    // No network, or cancelled: whoever cancels knows.
    return { kind: "unreachable", status: 0 };
  }
}

/** The sentence for a refusal. */
export function refusalSentence(code: string, detail: Record<string, unknown>, text: Text): string {
  const key = `api.${code}`;
  const limit =
    typeof detail.limit === "number" || typeof detail.limit === "string" ? detail.limit : "?";
  return isTextKey(key) ? text(key, { limit }) : text("api.other", { code });
}

function parseObject(text: string): Record<string, unknown> | null {
  try {
    return toObject(JSON.parse(text));
  } catch {
    // A proxy's page, or nothing.
    return null;
  }
}

const toObject = (value: unknown) =>
  typeof value === "object" && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : null;
