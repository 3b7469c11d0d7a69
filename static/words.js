// What the scripts say, in the language of the page. The page holds the translations as JSON where it is not in English.
// tools/catalogues.py finds the messages by the names of these two functions.

(() => {
  const translations = JSON.parse(document.getElementById("script-messages")?.textContent ?? "{}");
  const language = document.documentElement.lang;
  const rules = new Intl.PluralRules(language);
  const categories = ["zero", "one", "two", "few", "many", "other"].filter((name) => rules.resolvedOptions().pluralCategories.includes(name));

  const fill = (text, values) => text.replace(/%(?:\((\w+)\)s|%)/g, (whole, name) => (whole === "%%" ? "%" : String(values[name])));

  /** The message in the language of the page, with its values in the places `%(name)s`. */
  globalThis.gettext = (message, values = {}) => fill(translations[message] || message, values);

  /** The same about a number of things, which is `%(num)s`. */
  globalThis.ngettext = (message, plural, number, values = {}) => {
    const forms = translations[message]?.some?.(Boolean) ? translations[message] : undefined;
    // gettext numbers its plural forms in the order of these categories.
    const text = forms ? forms[Math.min(categories.indexOf(rules.select(number)), forms.length - 1)] : number === 1 ? message : plural;
    return fill(text, { num: number, ...values });
  };
})();
