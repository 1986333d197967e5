/** The element with this id, of the class it must have. */
export function byId<E extends HTMLElement>(id: string, type: new () => E): E {
  const element = document.getElementById(id);
  if (element instanceof type) {
    return element;
  }
  throw new Error(`The page has no ${type.name} with the id "${id}"`);
}

/** Puts text on the system clipboard, from a click: the old way works on plain http too. */
export async function copyText(text: string): Promise<boolean> {
  if (navigator.clipboard !== undefined) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Refused by a permission or an iframe's policy: the old way may still be allowed.
    }
  }
  const scratch = document.createElement("textarea");
  scratch.value = text;
  scratch.className = "scratch";
  // An open popover makes no focus trap, but text outside of it would close it on some browsers.
  const home = document.querySelector("[popover]:popover-open") ?? document.body;
  const focused = document.activeElement;
  home.append(scratch);
  scratch.select();
  const isCopied = document.execCommand("copy");
  scratch.remove();
  if (focused instanceof HTMLElement) {
    focused.focus();
  }
  return isCopied;
}

/** An icon out of a file of drawings, in the colour of the text around it. */
export function createIcon(address: string): SVGElement {
  const space = "http://www.w3.org/2000/svg";
  const icon = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  icon.setAttribute("class", "icon");
  icon.setAttribute("viewBox", "0 0 16 16");
  icon.setAttribute("aria-hidden", "true");
  use.setAttribute("href", address);
  icon.append(use);
  return icon;
}
