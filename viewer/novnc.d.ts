// The types package describes the path of an older layout; noVNC 1.7 exports only its root.
declare module "@novnc/novnc" {
  export { default } from "@novnc/novnc/lib/rfb";
}

declare module "*.svg" {
  const text: string;
  export { text as default };
}
