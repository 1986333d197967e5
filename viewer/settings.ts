// What this browser remembers of the reader's choices, one string a name.

const prefix = "jupyter-desktop:";

/** What was saved under this name, else null. */
export function loadSetting(name: string): string | null {
  try {
    return localStorage.getItem(prefix + name);
  } catch {
    // Storage is shut off: nothing is remembered, all works.
    return null;
  }
}

/** Remembers a value; null forgets it. */
export function saveSetting(name: string, value: string | null): void {
  try {
    if (value === null) {
      localStorage.removeItem(prefix + name);
    } else {
      localStorage.setItem(prefix + name, value);
    }
  } catch {
    // Shut off or full: it holds for this visit only.
  }
}

/** A checkbox that is remembered: set at once, and told at the start and at each change. */
export function bindSwitch(
  box: HTMLInputElement,
  name: string,
  { otherwise, changed }: { otherwise: boolean; changed(isOn: boolean): void },
): void {
  box.checked = (loadSetting(name) ?? String(otherwise)) === "true";
  box.addEventListener("change", () => {
    saveSetting(name, String(box.checked));
    changed(box.checked);
  });
  changed(box.checked);
}

/** A button that stays pressed, and is remembered. */
export function bindToggle(
  button: HTMLButtonElement,
  name: string,
  changed: (isOn: boolean) => void,
): void {
  const set = (isOn: boolean) => {
    button.setAttribute("aria-pressed", String(isOn));
    changed(isOn);
  };
  button.addEventListener("click", () => {
    const isOn = button.getAttribute("aria-pressed") !== "true";
    saveSetting(name, isOn ? "true" : null);
    set(isOn);
  });
  set(loadSetting(name) === "true");
}
