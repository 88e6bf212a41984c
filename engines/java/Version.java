package io.tierstore.spark;

import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;

/** Which tierstore this jar is of: written into it when it is built. */
final class Version {
  private Version() {}

  static String text() throws IOException {
    try (InputStream stream = Version.class.getResourceAsStream("version")) {
      if (stream == null) {
        throw new IOException("this jar was not built by tierstore.engines.spark_jar: it does not say its version");
      }
      return new String(stream.readAllBytes(), StandardCharsets.UTF_8).strip();
    }
  }
}
